"""Decoder: is an instruction word legal, and whose is it? Derived from the table of arch.isa."""

from typing import Any

from amaranth.hdl import Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import (
    COMMON,
    FORMATS,
    UNIT_OF,
    WORD_BYTES,
    Encoding,
    ErrorCode,
    Field,
    LoadKind,
    Op,
    poster_mask,
    waiter_mask,
)
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import legal_encodings, operand_encodings
from gossamer.rtl.layouts import covered_mask, field_value

__all__ = ["Decoder"]


class Decoder(wiring.Component):
    """Combinational. `error` is an ErrorCode (NONE for a legal word), `op` the opcode.

    An opcode that is not in the table is ILLEGAL_OPCODE; a mask that names another unit's semaphore is
    ILLEGAL_SEMAPHORE; a value out of its field's bounds, a bit outside of every field, and a LOAD of a kind, an
    encoding or (TRANSPOSED) a destination that this machine does not have are ILLEGAL_FIELD.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__({"word": In(8 * WORD_BYTES), "op": Out(COMMON[0].bits), "error": Out(4)})

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        wait, post = (field_value(self.word, f) for f in COMMON[1:])
        m.d.comb += [self.op.eq(field_value(self.word, COMMON[0])), self.error.eq(ErrorCode.ILLEGAL_OPCODE)]
        for op in Op:
            wrong_field, wrong_mask = Signal(name=f"{op.name.lower()}_field"), Signal(name=f"{op.name.lower()}_mask")
            unit = UNIT_OF[op]
            faults = [(self.word & ~covered_mask(op)).any()]
            for f in FORMATS[op]:
                if f.low:
                    faults.append(field_value(self.word, f) < f.low)
                if f.high is not None:
                    faults.append(field_value(self.word, f) > f.high)
            if op is Op.LOAD:
                faults.append(self._bad_load())
            fault = Const(0, 1)
            for one in faults:
                fault = fault | one
            m.d.comb += [
                wrong_field.eq(fault),
                wrong_mask.eq(
                    (wait & (0xFFF & ~waiter_mask(unit))).any() | (post & (0xFFF & ~poster_mask(unit))).any()
                ),
            ]
            with m.If(self.op == op):
                m.d.comb += self.error.eq(ErrorCode.NONE)
                with m.If(wrong_mask):
                    m.d.comb += self.error.eq(ErrorCode.ILLEGAL_SEMAPHORE)
                with m.Elif(wrong_field):
                    m.d.comb += self.error.eq(ErrorCode.ILLEGAL_FIELD)
        return m

    def _bad_load(self) -> Any:
        fields = {f.name: f for f in FORMATS[Op.LOAD]}
        kind = field_value(self.word, fields["kind"])
        encoding = field_value(self.word, fields["encoding"])
        absent: Any = Const(0, 1) if self._spec.tables else kind == LoadKind.TABLE
        known = Const(0, 1)
        for e in (*legal_encodings(self._spec), *operand_encodings(self._spec)):
            known = known | (encoding == e)
        return absent | ~known | ((kind != LoadKind.WEIGHT) & (encoding != 0)) | self._bad_dest(encoding, fields)

    def _bad_dest(self, encoding: Any, fields: dict[str, Field]) -> Any:
        """A TRANSPOSED load begins in bank 0 of the weight buffer."""
        low = self._spec.weight_banks.bit_length() - 1
        if not low:
            return Const(0, 1)
        return (encoding == Encoding.TRANSPOSED) & field_value(self.word, fields["dest"])[:low].any()
