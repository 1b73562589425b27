"""The mapping that all layers of a chain share, by the closed-form cost of mapping.py for one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import drain_latency, matmul_latency
from gossamer.compiler.backend.bands import banded_work, bands_fit, may_have_bands
from gossamer.compiler.backend.cost import Work, alone, layer_work, make_cut, steps_at_once
from gossamer.compiler.backend.mapped import MappedLayer
from gossamer.compiler.backend.mapping import bank_bytes, grids, loadable, tile_sizes, whole_map
from gossamer.compiler.backend.tiling import Cost, overlapped
from gossamer.compiler.backend.tiling import Mapping as Tiling

__all__ = ["search_chain"]


def search_chain(members: Sequence[MappedLayer]) -> Tiling | None:
    """The cheapest mapping that all layers of a chain share."""
    found = [t for grid, lane_rows in grids(members[0].problem) if (t := _under(members, grid, lane_rows))]
    found += [t for m in members if len(m.mapping.bands) > 1 and (t := _in_bands(members, m.mapping))]
    return min(found, key=lambda t: t.cost.flowing) if found else None


def _under(members: Sequence[MappedLayer], grid: int, lane_rows: int) -> Tiling | None:
    """The best tile under a lane grid, tile by tile."""
    first, spec = members[0].problem, members[0].problem.spec
    width = 1 << grid
    ty, tx = tile_sizes(first, lane_rows, width)
    inputs = bank_bytes(first, ty, tx)
    row = spec.activation_row_bytes
    between = sum(-(-bank_bytes(m.problem, ty, tx) // row) * row for m in members[1:])
    cut = make_cut(first, lane_rows, width, ty, tx)
    between = between * np.where(cut.macros > 1, 2, 1)  # the next tile's, while this one is read
    legal = loadable(first, lane_rows, width, ty, tx) & (inputs + between <= spec.activation_bytes)
    legal &= ty * tx * spec.block <= spec.output_bytes
    if not legal.any():
        return None
    cut = make_cut(first, lane_rows, width, ty[legal], tx[legal])
    inputs, between = inputs[legal], between[legal]
    resident = sum(int(s.steps.sum()) for m in members for s in m.streams) <= spec.weight_steps
    works = [layer_work(m.problem, m.streams, cut, inputs + between // 2, resident=resident) for m in members]
    work = _together(works)
    part = spec.activation_bytes // spec.activation_partitions
    crowded = (cut.macros > 1) & (2 * inputs > (spec.activation_bytes - between) // part * part)
    waits = np.where(crowded, np.maximum(work.waits_for_inputs, work.inputs), work.waits_for_inputs)
    cost = alone(replace(work, waits_for_inputs=waits), cut.macros, spec, once=resident, resident=resident)
    links = (np.minimum(cut.ty * cut.tx, spec.depth) * spec.column_groups + _link(spec)) * (len(works) - 1)
    turns = _turn_by_turn(works, cut.macros, spec, resident=resident) + waits + work.waits_for_outputs
    mixed = np.maximum(cost["cycles"], turns + 2 * links + cost["start"] + cost["finish"])
    cost["cycles"] = np.where(cut.macros > 1, mixed, _one_by_one(works, spec) + links)
    i = int(np.argmin(cost["cycles"]))
    return Tiling(
        bands=(whole_map(first, grid, lane_rows, (int(cut.ty[i]), int(cut.tx[i]))),),
        chunks=1,
        steps_at_once=steps_at_once(spec),
        order="map",
        resident=resident,
        cost=Cost(**{k: float(v[i]) for k, v in cost.items()}),
    )


def _link(spec: ArchSpec) -> int:
    """Cycles from a layer's last slot to the next one's first, where nothing else is there to do, without the DRAIN."""
    return drain_latency(spec) + matmul_latency(spec)


def _turn_by_turn(
    works: Sequence[Work], macros: NDArray[np.int64], spec: ArchSpec, *, resident: bool
) -> NDArray[np.float64]:
    """Cycles of a chain whose layers work side by side, each a macro tile behind the one before.

    In the first turns only the first layers have something to do, in the last turns only the last.
    """
    share = 1.0 / macros

    def turn(active: Sequence[Work]) -> NDArray[np.float64]:
        read = sum(
            w.weights * (share if resident else 1.0)
            + (w.residual + w.parameters + (w.inputs if w is works[0] else 0.0)) * share
            for w in active
        )
        write = works[-1].write * share if works[-1] in active else np.zeros_like(share)
        return overlapped(sum(w.compute for w in active) * share, np.asarray(read), write)

    whole = turn(works) * np.maximum(macros - len(works) + 1, 0)
    ramps = [turn(works[:k]) + turn(works[k:]) for k in range(1, len(works))]
    return np.asarray(whole + np.sum(ramps, axis=0) + 2.0 * sum(w.items for w in works))


def _one_by_one(works: Sequence[Work], spec: ArchSpec) -> NDArray[np.float64]:
    """Cycles of a chain whose layers follow each other: what one of them reads or writes hides behind it alone."""
    first, last = works[0], works[-1]
    flowing = [
        overlapped(
            w.compute,
            w.weights + w.residual + w.parameters + (w.inputs if w is first else 0.0),
            w.write if w is last else np.zeros_like(w.write),
        )
        + 2.0 * w.items
        for w in works
    ]
    waits = first.waits_for_inputs + last.waits_for_outputs
    return np.asarray(np.sum(flowing, axis=0) + waits + first.start(spec) + last.finish)


def _in_bands(members: Sequence[MappedLayer], tiling: Tiling) -> Tiling | None:
    """Two bands that one of the layers found best, for all of them, layer by layer."""
    first, spec, bands = members[0].problem, members[0].problem.spec, tiling.bands
    ty, tx = (np.array([b.tile[axis] for b in bands]) for axis in (0, 1))
    between = sum(int(bank_bytes(m.problem, ty, tx).sum()) for m in members[1:])
    pieces = max(int(s.steps.max()) for m in members for s in m.streams)
    if not may_have_bands(first) or any(b.macros > 1 for b in bands) or pieces > steps_at_once(spec):
        return None
    if not bands_fit(first, members[0].streams, bands, spec.activation_bytes - between):
        return None
    works = [banded_work(m.problem, m.streams, bands) for m in members]
    cost = alone(_together(works), np.array([len(bands)]), spec, once=True, resident=False)
    cost["cycles"] = _one_by_one(works, spec) + _link(spec) * (len(works) - 1)
    return replace(tiling, order="tiles", resident=False, cost=Cost(**{k: float(v[0]) for k, v in cost.items()}))


def _together(works: Sequence[Work]) -> Work:
    """The work of a chain: inputs of the first layer, outputs of the last, weights of all."""
    first, last = works[0], works[-1]

    def total(name: str) -> NDArray[np.float64]:
        return np.asarray(np.sum([np.broadcast_to(getattr(w, name), first.compute.shape) for w in works], axis=0))

    return replace(
        first,
        **{name: total(name) for name in ("array", "ppu", "compute", "weights", "residual", "items")},
        parameters=sum(w.parameters for w in works),
        write=last.write,
        waits_for_outputs=last.waits_for_outputs,
        largest=max(w.largest for w in works),
        finish=last.finish,
    )
