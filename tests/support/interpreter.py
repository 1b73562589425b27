"""An oracle for values: arch/access.py and arch/numerics.py word for word, in loops over single elements.

Memories are dictionaries from address to value, so that reading what nobody wrote is a KeyError... unless `unwritten`
gives a value for it. Nothing here is shared with gossamer.sim.
"""

from fractions import Fraction

import numpy as np

from gossamer.arch.isa import Encoding, LoadKind, MatmulMode, Op, from_matrix


class Memory(dict):
    """Address to value; what nobody wrote is `unwritten`."""

    def __init__(self, unwritten):
        super().__init__()
        self.unwritten = unwritten

    def __missing__(self, address):
        if self.unwritten is None:
            raise KeyError(address)
        return self.unwritten


def code(byte, signed):
    return byte - 256 if signed and byte >= 128 else byte


def int32(x):
    """A 32-bit register."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x


class Interpreter:
    """The memories of an accelerator, and what each instruction does to them."""

    def __init__(self, spec, dram, unwritten=0):
        self.spec, self.dram = spec, [int(b) for b in dram]
        lanes = range(spec.lanes)
        self.activations = [Memory(unwritten) for _ in lanes]
        self.outputs = [Memory(unwritten) for _ in lanes]
        self.values, self.selects = Memory(unwritten), Memory(unwritten)
        self.offsets, self.parameters, self.tables = Memory(unwritten), Memory(unwritten), Memory(unwritten)
        self.accumulators = Memory(unwritten)

    def run(self, matrix):
        """All instructions in program order. Returns DRAM, uint8."""
        steps = {Op.LOAD: self.load, Op.MATMUL: self.matmul, Op.DRAIN: self.drain, Op.STORE: self.store}
        for ins in from_matrix(matrix):
            if ins.op in steps:
                steps[ins.op](ins)
        return np.array(self.dram, dtype=np.uint8)

    def lane(self, r, grid):
        """Row and column of lane r."""
        return r // 2**grid, r % 2**grid

    def load(self, ins):
        B = self.spec.axi_bytes
        string = []
        for b in range(ins["blocks"]):
            for y in range(ins["rows"]):
                for x in range(ins["beats"]):
                    at = (ins["address"] + b * ins["block_stride"] + y * ins["row_stride"] + x) * B
                    beat = self.dram[at : at + B]
                    string += beat
                    if ins["kind"] in (LoadKind.ACTIVATION, LoadKind.OUTPUT):
                        banks = self.activations if ins["kind"] == LoadKind.ACTIVATION else self.outputs
                        for r in range(self.spec.lanes):
                            i, j = self.lane(r, ins["grid"])
                            lx, ly = x - j * ins["step_beats"], y - i * ins["step_rows"]
                            if 0 <= lx < ins["tile_beats"] and 0 <= ly < ins["tile_rows"]:
                                to = ins["dest"] + (b * ins["tile_rows"] + ly) * ins["tile_beats"] + lx
                                for k in range(B):
                                    banks[r][to * B + k] = beat[k]
        if ins["kind"] == LoadKind.WEIGHT and ins["encoding"] in (Encoding.NATURAL, Encoding.TRANSPOSED):
            self.load_operand(ins, string)
        elif ins["kind"] == LoadKind.WEIGHT:
            self.load_weights(ins, string)
        elif ins["kind"] == LoadKind.OFFSET:
            for k in range(len(string) // 2):
                self.offsets[ins["dest"] * B // 2 + k] = string[2 * k] + 256 * string[2 * k + 1]
        elif ins["kind"] == LoadKind.PARAMETER:
            for k, byte in enumerate(string):
                self.parameters[ins["dest"] * B + k] = byte
        elif ins["kind"] == LoadKind.TABLE:
            for k, byte in enumerate(string):
                self.tables[ins["dest"] + k // 256, k % 256] = byte

    def load_weights(self, ins, string):
        C, V, M = self.spec.columns, self.spec.macs, self.spec.group
        bits_of_select = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4, 32: 5}[M]
        extra = {Encoding.DENSE: 0, Encoding.INDEX: C * V * bits_of_select, Encoding.MASK: C * M}[ins["encoding"]]
        size = max(C * V + (extra + 7) // 8, self.spec.axi_bytes)
        for k in range(len(string) // size):
            record = string[k * size : (k + 1) * size]
            bits = [byte >> n & 1 for byte in record[C * V :] for n in range(8)]
            for c in range(C):
                marked = [m for m in range(M) if extra and bits[c * M : c * M + M][m : m + 1] == [1]]
                for v in range(V):
                    row = ins["dest"] + k
                    self.values[row, c, v] = code(record[c * V + v], True)
                    if ins["encoding"] == Encoding.DENSE:
                        select = (k % (M // V)) * V + v
                    elif ins["encoding"] == Encoding.INDEX:
                        first = (c * V + v) * bits_of_select
                        select = sum(bits[first + n] << n for n in range(bits_of_select))
                    else:
                        select = marked[v] if v < len(marked) else 0
                    self.selects[row, c, v] = select

    def load_operand(self, ins, string):
        B, C = self.spec.axi_bytes, self.spec.columns
        for n, byte in enumerate(string):
            beat, at = divmod(n, B)
            b, i = divmod(beat, ins["beats"] * ins["rows"])
            if ins["encoding"] == Encoding.TRANSPOSED:
                t = ins["tile_beats"]
                self.put_operand(ins, (b * t + i % t) * B + at, i // t, byte)
            elif C >= B:
                self.put_operand(ins, beat // (C // B), beat % (C // B) * B + at, byte)
            elif at // C == ins["step_beats"]:
                self.put_operand(ins, beat, at % C, byte)

    def put_operand(self, ins, k, c, byte):
        """Reduction index k of column c."""
        V = self.spec.macs
        row = ins["dest"] + k // V
        self.values[row, c, k % V] = code(byte, True)
        self.selects[row, c, k % V] = k % self.spec.group

    def matmul(self, ins):
        spec = self.spec
        M, H = spec.group, spec.hop
        zero = code(ins["zero_point"], ins["signed"])
        for r in range(spec.lanes):
            for c in range(spec.columns):
                for y in range(ins["ny"]):
                    for x in range(ins["nx"]):
                        t = y * ins["nx"] + x
                        key = (ins["bank"], ins["acc_base"] + t, r, c)
                        if ins["accumulate"]:
                            acc = self.accumulators[key]
                        else:
                            acc = -(2**31) if ins["mode"] == MatmulMode.MAXIMUM else 0
                        for s in range(ins["steps"]):
                            window = ins["act_base"] * M + self.offsets[ins["offset_base"] + s] * H
                            window += (y * ins["sy"] + x * ins["sx"]) * M
                            for v in range(spec.macs):
                                value = self.values[ins["weight_base"] + s, c, v]
                                select = self.selects[ins["weight_base"] + s, c, v]
                                if value == 0:
                                    continue
                                (e,) = [e for e in range(window, window + M) if e % M == select]
                                product = value * (code(self.activations[r][e], ins["signed"]) - zero)
                                acc = max(acc, product) if ins["mode"] == MatmulMode.MAXIMUM else acc + product
                        self.accumulators[key] = int32(acc)

    def drain(self, ins):
        P = self.spec.ppu
        banks = self.activations if ins["to_activation"] else self.outputs
        for y in range(ins["ny"]):
            for x in range(ins["nx"]):
                for g in range(ins["column_groups"]):
                    for r in range(self.spec.lanes):
                        for p in range(P):
                            t = y * ins["nx"] + x
                            acc = self.accumulators[ins["bank"], ins["acc_base"] + t, r, g * P + p]
                            move = y * ins["sy"] + x * ins["sx"] + g
                            to = (ins["dest"] + move) * P + p
                            if ins["raw"]:
                                for k in range(4):
                                    banks[r][4 * to + k] = acc >> (8 * k) & 255
                            else:
                                banks[r][to] = self.requantise(ins, acc, g * P + p, r, move * P + p)

    def requantise(self, ins, acc, channel, r, move):
        at = (ins["param_base"] * self.spec.ppu + channel) * 8
        p = [self.parameters[at + k] for k in range(8)]
        bias = int32(p[0] + (p[1] << 8) + (p[2] << 16) + (p[3] << 24))
        multiplier, shift = p[4] + (p[5] << 8) + (p[6] << 16), p[7]
        total = (acc + bias) * multiplier
        if ins["residual"]:
            other = code(self.outputs[r][ins["residual_base"] * self.spec.ppu + move], ins["residual_signed"])
            other -= code(ins["residual_zero"], ins["residual_signed"])
            total += other * ins["residual_multiplier"] * 2 ** (shift - ins["residual_shift"])
        # round() of a Fraction rounds half to even
        y = min(max(round(Fraction(total, 2**shift)) + ins["zero_point"], ins["lo"]), ins["hi"]) & 255
        return self.tables[ins["table"], y] if ins["table_enable"] else y

    def store(self, ins):
        B = self.spec.axi_bytes
        for b in range(ins["blocks"]):
            for y in range(ins["rows"]):
                for x in range(ins["beats"]):
                    i, j = y // ins["tile_rows"], x // ins["tile_beats"]
                    r = i * 2 ** ins["grid"] + j
                    source = ins["source"] + (b * ins["tile_rows"] + y % ins["tile_rows"]) * ins["tile_beats"]
                    source += x % ins["tile_beats"]
                    at = (ins["address"] + b * ins["block_stride"] + y * ins["row_stride"] + x) * B
                    self.dram[at : at + B] = [self.outputs[r][source * B + k] for k in range(B)]
