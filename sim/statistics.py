"""What only a model can count: useful work, bytes of each on-chip memory, utilisation."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import (
    D_G,
    D_NX,
    D_NY,
    D_RAW,
    D_RES,
    D_TEN,
    D_TOACT,
    L_ADDR,
    L_BEATS,
    L_BLOCKS,
    L_BS,
    L_DEST,
    L_ENC,
    L_GRID,
    L_KIND,
    L_ROWS,
    L_RS,
    L_SB,
    L_SR,
    L_TB,
    L_TR,
    M_ACC,
    M_NX,
    M_NY,
    M_STEPS,
    M_W,
    S_BEATS,
    S_BLOCKS,
    S_ROWS,
)
from gossamer.arch.isa import Encoding, LoadKind, Op
from gossamer.arch.jit import jit
from gossamer.arch.program import Program
from gossamer.arch.run import StageRun
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import record_bytes

__all__ = ["statistics"]

_KINDS = [k.name.lower() for k in LoadKind]
_UNITS = ("load", "matmul", "drain", "store")


def statistics(program: Program, stages: Sequence[StageRun], dram: NDArray[np.uint8]) -> Mapping[str, float]:
    """Counts over all accelerator stages. dram : the memory at the start (weights are read from it).

    macs_peak : what the array could do in all cycles.  macs_issued : slots * lanes * columns * macs.
    macs_useful : those with a nonzero weight, in all lanes.
    macs_dense, macs_nonzero : of the layers as the model has them, without idle lanes and columns (0 if unknown).
    utilisation_array : macs_nonzero, or macs_useful where layers are unknown, over macs_peak.
    utilisation_UNIT : share of all cycles in which the unit was busy.
    MEMORY_read_bytes, MEMORY_written_bytes : on chip, all lanes together. A weight row is read once a step and held; a
        parameter is read once for all lanes.
    dram_read_KIND_bytes, dram_fetched_bytes, dram_written_bytes : on the buses.
    """
    spec = program.spec
    out: dict[str, float] = {}
    cycles = sum(s.cycles for s in stages)
    counters = {name: sum(s.counters[name] for s in stages) for name in (stages[0].counters if stages else ())}
    out["macs_peak"] = cycles * spec.peak_macs
    out["macs_issued"] = counters.get("slots", 0) * spec.peak_macs
    matrices = [program.instructions[s.first : s.first + s.count] for s in program.accelerator_stages]
    out["macs_useful"] = sum(_useful_macs(np.ascontiguousarray(m), spec, dram) for m in matrices)
    out["macs_dense"] = sum(note.macs for note in program.layers)
    out["macs_nonzero"] = sum(note.useful_macs for note in program.layers)
    useful = out["macs_nonzero"] or out["macs_useful"]
    out["utilisation_array"] = useful / out["macs_peak"] if cycles else 0.0
    for unit in _UNITS:
        out[f"utilisation_{unit}"] = counters.get(f"busy_{unit}", 0) / cycles if cycles else 0.0
    for m in matrices:
        for name, count in _on_chip(m, spec).items():
            out[name] = out.get(name, 0) + count
    for kind in _KINDS:
        out[f"dram_read_{kind}_bytes"] = counters.get(f"beats_read_{kind}", 0) * spec.axi_bytes
    out["dram_fetched_bytes"] = counters.get("beats_fetched", 0) * spec.fetch_bytes
    out["dram_written_bytes"] = counters.get("beats_written", 0) * spec.axi_bytes
    return out


def _on_chip(matrix: NDArray[np.int64], spec: ArchSpec) -> dict[str, float]:
    """Bytes read from and written to every on-chip memory by one stage."""
    loads, matmuls = matrix[matrix[:, 0] == Op.LOAD], matrix[matrix[:, 0] == Op.MATMUL]
    drains, stores = matrix[matrix[:, 0] == Op.DRAIN], matrix[matrix[:, 0] == Op.STORE]
    kind = loads[:, L_KIND]
    total = loads[:, L_BEATS] * loads[:, L_ROWS] * loads[:, L_BLOCKS] * spec.axi_bytes
    tiles = _kept_beats(loads, spec) * spec.axi_bytes
    row_bytes = spec.columns * spec.macs * (8 + spec.select_bits) / 8
    records = np.array([record_bytes(spec, e) for e in Encoding], dtype=np.int64)
    steps = matmuls[:, M_STEPS]
    positions = matmuls[:, M_NX] * matmuls[:, M_NY]
    slots = drains[:, D_NX] * drains[:, D_NY] * drains[:, D_G]
    raw, chained = drains[:, D_RAW] == 1, drains[:, D_TOACT] == 1
    drained = slots * spec.ppu * spec.lanes
    written = drained * np.where(raw, 4, 1)
    stored = stores[:, S_BEATS] * stores[:, S_ROWS] * stores[:, S_BLOCKS] * spec.axi_bytes
    sums = 4 * spec.pes
    counts = {
        "activations_read_bytes": np.sum(steps * positions) * spec.group * spec.lanes,
        "activations_written_bytes": np.sum(tiles[kind == LoadKind.ACTIVATION]) + np.sum(written[chained]),
        "outputs_read_bytes": np.sum(stored) + np.sum(drained[drains[:, D_RES] == 1]),
        "outputs_written_bytes": np.sum(tiles[kind == LoadKind.OUTPUT]) + np.sum(written[~chained]),
        "weights_read_bytes": np.sum(steps) * row_bytes,
        "weights_written_bytes": np.sum((total // records[loads[:, L_ENC]])[kind == LoadKind.WEIGHT]) * row_bytes,
        "offsets_read_bytes": np.sum(steps) * 2,
        "offsets_written_bytes": np.sum(total[kind == LoadKind.OFFSET]),
        "parameters_read_bytes": np.sum(slots[~raw]) * spec.ppu * 8,
        "parameters_written_bytes": np.sum(total[kind == LoadKind.PARAMETER]),
        "tables_read_bytes": np.sum(drained[drains[:, D_TEN] == 1]),
        "tables_written_bytes": np.sum(total[kind == LoadKind.TABLE]) * spec.lanes * spec.ppu,
        "accumulators_read_bytes": np.sum((steps - 1 + matmuls[:, M_ACC]) * positions) * sums + np.sum(drained) * 4,
        "accumulators_written_bytes": np.sum(steps * positions) * sums,
    }
    return {name: float(count) for name, count in counts.items()}


def _kept_beats(loads: NDArray[np.int64], spec: ArchSpec) -> NDArray[np.int64]:
    """Beats that the lanes keep of every LOAD of activations or outputs, summed over lanes."""
    lane = np.arange(spec.lanes)[:, None]
    width = 1 << loads[:, L_GRID]
    across = np.clip(loads[:, L_BEATS] - lane % width * loads[:, L_SB], 0, loads[:, L_TB])
    down = np.clip(loads[:, L_ROWS] - lane // width * loads[:, L_SR], 0, loads[:, L_TR])
    kept: NDArray[np.int64] = np.sum(across * down, axis=0) * loads[:, L_BLOCKS]
    return kept


def _useful_macs(matrix: NDArray[np.int64], spec: ArchSpec, dram: NDArray[np.uint8]) -> int:
    records = np.array([record_bytes(spec, e) for e in Encoding], dtype=np.int64)
    values = spec.columns * spec.macs
    return int(_nonzero_slots(matrix, dram, records, values, spec.axi_bytes, spec.weight_steps)) * spec.lanes


@jit
def _nonzero_slots(
    matrix: NDArray[np.int64], dram: NDArray[np.uint8], records: NDArray[np.int64], values: int, beat: int, rows: int
) -> int:
    """Sum over MATMULs of nonzero weight values * positions. Weights that are activations count as nonzero."""
    nonzeros = np.zeros(rows, dtype=np.int64)
    total = 0
    for i in range(matrix.shape[0]):
        f = matrix[i]
        if f[0] == Op.LOAD and f[L_KIND] == LoadKind.WEIGHT:
            size, k, byte = records[f[L_ENC]], f[L_DEST], 0
            whole = f[L_BEATS] * f[L_ROWS] * f[L_BLOCKS] * beat // size
            if f[L_ENC] >= Encoding.NATURAL:
                nonzeros[k : k + whole] = values
                continue
            nonzeros[k : k + whole] = 0
            for b in range(f[L_BLOCKS]):
                for y in range(f[L_ROWS]):
                    at = (f[L_ADDR] + b * f[L_BS] + y * f[L_RS]) * beat
                    for x in range(f[L_BEATS] * beat):
                        if byte < values and dram[at + x] != 0 and k < f[L_DEST] + whole:
                            nonzeros[k] += 1
                        byte += 1
                        if byte == size:
                            k, byte = k + 1, 0
        elif f[0] == Op.MATMUL:
            total += nonzeros[f[M_W] : f[M_W] + f[M_STEPS]].sum() * f[M_NX] * f[M_NY]
    return total
