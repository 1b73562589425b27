"""Products of two activations: attention's Q K^T and P V, however an exporter writes the way into heads and back.

What stands between a projection and the product (Reshape, Transpose, Split, Slice, Gather, Squeeze, a constant factor)
only moves elements. So it is run on element numbers instead of matched: if the operand's elements, head by head and
token by token, turn out to be runs of channels of the tensor it all began with, the product reads that tensor, and
nothing needs to move. Where they are some of its channels (one projection for Q, K and V together), the linear layer
before is cut into the rows that are wanted.
"""

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from onnx import helper

from gossamer.compiler.frontend.cleanup import may_drop
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Affine, Array, Host, Linear, Op, Product, Reshape, Transpose, View
from gossamer.compiler.frontend.recognise import NEVER
from gossamer.compiler.frontend.shapes import evaluate

__all__ = ["MASK_TILE", "recognise_products", "refuse_products"]

_MOVES = {"Slice", "Split", "Gather"}
"""Host operations that only move elements when all inputs but the first are constants."""

_ELEMENTS = 1 << 24
"""Element numbers of larger tensors are not tracked."""


@dataclass(frozen=True, kw_only=True)
class _Operand:
    """Tokens of a tensor as an operand: elements in the order (images, tokens, runs, width)."""

    tensor: str
    runs: int
    factor: float = 1.0
    transposed: bool = False
    rows: tuple[int, ...] | None = None
    """Channels that are wanted of a linear layer's output, where not all are, in this order."""


def recognise_products(graph: Graph) -> Graph:
    """Replace products of two computed tensors by Product, with the views and constant factors around them."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Host) and op.node.op_type == "MatMul" and _is_product(graph, op):
            _replace(graph, op)
    graph.prune()
    _mark_masked(graph)
    return graph


def refuse_products(graph: Graph) -> Graph:
    """Say of products of two computed tensors that they stay on the host because the accelerator has none."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Host) and op.node.op_type == "MatMul" and _is_product(graph, op):
            graph.replace(
                op.name,
                replace(op, reason="a product of two activations, and the spec has array.dynamic_operands = false"),
            )
    return graph


def _is_product(graph: Graph, op: Host) -> bool:
    infos = [graph.info(t) for t in (*op.inputs, op.output)]
    shapes = [info.shape for info in infos]
    if any(s is None or len(s) < 2 or 0 in s for s in shapes) or any(info.dtype != "float32" for info in infos):
        return False
    if any(t in graph.constants for t in op.inputs):
        return False
    a, b = graph.shape(op.inputs[0]), graph.shape(op.inputs[1])
    return a[:-2] == b[:-2] and max(prod(a), prod(b)) <= _ELEMENTS


def _replace(graph: Graph, op: Host) -> None:
    left, right = graph.shape(op.inputs[0]), graph.shape(op.inputs[1])
    products, rows, columns = prod(left[:-2]), left[-2], right[-1]
    a = _operand(graph, op.inputs[0], products, natural=True, transposed=False)
    b = _operand(graph, op.inputs[1], products, natural=True, transposed=True)
    if a is None or b is None:
        return
    factor, output, source = a.factor * b.factor, op.output, op.source
    output, inner, more = _scaled(graph, output)
    output, runs, views = _merged(graph, output, products, rows, columns)
    for old in (op.name, *inner, *views):
        source += graph.op(old).source if old != op.name else ()
        graph.remove(old)
    graph.add(
        Product(
            name=op.name,
            inputs=(_taken(graph, a), _taken(graph, b)),
            outputs=(output,),
            source=tuple(dict.fromkeys(source)),
            products=products,
            size=(rows, left[-1], columns),
            transposed=b.transposed,
            runs=(a.runs, b.runs, runs),
            factor=factor * more,
        )
    )


# --- operands -------------------------------------------------------------------------------------------------------


def _operand(graph: Graph, tensor: str, products: int, *, natural: bool, transposed: bool) -> _Operand | None:
    """The tensor that lies deepest behind a chain of moves and still is tokens of this operand."""
    chain = _chain(graph, tensor)
    shape = graph.shape(tensor)
    for depth in range(len(chain), -1, -1):
        root = chain[depth - 1][0].inputs[0] if depth else tensor
        if prod(graph.shape(root)) > _ELEMENTS:
            continue
        moved = _moved(graph, root, chain[:depth][::-1])
        if moved is None:
            continue
        factor = float(np.prod([op.scale[0] for op, _ in chain[:depth] if isinstance(op, Affine)]))
        numbers = moved.reshape(products, *shape[-2:])
        for turned in (False, True):
            if not (transposed if turned else natural):
                continue
            found = _tokens(graph, root, numbers.transpose(0, 2, 1) if turned else numbers)
            if found is not None:
                return replace(found, factor=factor, transposed=turned)
    return None


def _chain(graph: Graph, tensor: str) -> list[tuple[Op, str]]:
    """The moves that lead to a tensor, the last one first, each with the output that matters."""
    chain: list[tuple[Op, str]] = []
    while (op := graph.producer(tensor)) is not None and _is_move(graph, op):
        chain.append((op, tensor))
        tensor = op.inputs[0]
    return chain


def _is_move(graph: Graph, op: Op) -> bool:
    if isinstance(op, View):
        return True
    if isinstance(op, Affine):
        return _is_factor(graph, op)
    if not isinstance(op, Host) or op.node.op_type not in _MOVES or op.captured:
        return False
    return op.inputs[0] not in graph.constants and all(t in graph.constants for t in op.reads[1:])


def _is_factor(graph: Graph, op: Affine) -> bool:
    """Whether it multiplies everything by one positive number."""
    alone = not op.residual and op.activation is None and may_drop(graph.info(op.output).quant)
    return alone and not op.shift.any() and not np.ptp(op.scale) and op.scale[0] > 0


def _moved(graph: Graph, root: str, moves: list[tuple[Op, str]]) -> Array | None:
    """Element numbers of root after the moves; None where a move cannot be evaluated."""
    numbers: Array = np.arange(prod(graph.shape(root))).reshape(graph.shape(root))
    for op, output in moves:
        if isinstance(op, Reshape | Transpose):
            numbers = op.apply(numbers)
        elif isinstance(op, Host):
            constants = {name: graph.constants[name] for name in op.reads[1:]}
            found = evaluate(op, {op.inputs[0]: numbers, **constants}, graph.opset)
            if found is None:
                return None
            numbers = found[output]
    return numbers


def _tokens(graph: Graph, root: str, numbers: Array) -> _Operand | None:
    """Whether element numbers [products, tokens, width] are (images, tokens, runs, width) of a tensor's elements."""
    shape = graph.shape(root)
    products, tokens, width = numbers.shape
    channels = shape[-1]
    size = prod(shape)
    if size == numbers.size and np.array_equal(numbers.reshape(-1), np.arange(size)) and channels == width:
        return _Operand(tensor=root, runs=1)
    if not 2 <= len(shape) <= 3:
        return None
    images = shape[0] if len(shape) == 3 else 1
    if size != images * tokens * channels or products % images:
        if len(shape) != 3 or size != tokens * channels:
            return None
        images = 1  # tokens first, a batch of one behind them
    runs = products // images
    token, channel = np.divmod(numbers.reshape(images, runs, tokens, width), channels)
    places = np.arange(images * tokens).reshape(images, 1, tokens, 1)
    if not (token == places).all() or not (channel == channel[:1, :, :1]).all():
        return None
    wanted = channel[0, :, 0].reshape(-1)
    if np.array_equal(wanted, np.arange(channels)):
        return _Operand(tensor=root, runs=runs)
    producer = graph.producer(root)
    if not isinstance(producer, Linear) or producer.residual or producer.activation is not None:
        return None
    return _Operand(tensor=root, runs=runs, rows=tuple(int(c) for c in wanted))


def _taken(graph: Graph, operand: _Operand) -> str:
    """The operand's tensor, made by a linear layer of its own where only some channels are wanted."""
    if operand.rows is None:
        return operand.tensor
    whole = graph.producer(operand.tensor)
    assert isinstance(whole, Linear)
    rows = list(operand.rows)
    shape = (*graph.shape(operand.tensor)[:-1], len(rows))
    output = graph.fresh(f"{operand.tensor}/rows{rows[0]}")
    graph.tensors[output] = replace(graph.info(operand.tensor), name=output, shape=shape)
    graph.add(
        replace(
            whole,
            name=graph.fresh(f"{whole.name}/rows{rows[0]}"),
            outputs=(output,),
            weight=whole.weight[rows],
            bias=None if whole.bias is None else whole.bias[rows],
            weight_scale=None if whole.weight_scale is None else whole.weight_scale[rows],
        )
    )
    return output


# --- what follows a product -----------------------------------------------------------------------------------------


def _scaled(graph: Graph, tensor: str) -> tuple[str, list[str], float]:
    """The tensor behind constant factors that follow, the operations passed, and their product."""
    passed: list[str] = []
    factor = 1.0
    while isinstance(op := graph.sole_consumer(tensor), Affine) and _is_factor(graph, op):
        if not may_drop(graph.info(tensor).quant):
            break
        passed.append(op.name)
        factor *= float(op.scale[0])
        tensor = op.output
    return tensor, passed, factor


def _merged(graph: Graph, tensor: str, products: int, rows: int, columns: int) -> tuple[str, int, list[str]]:
    """The last view behind a product that is tokens with the heads as runs of channels; runs; the views passed."""
    moved = np.arange(products * rows * columns).reshape(graph.shape(tensor))
    best, walked = (tensor, 1, 0), []
    plain = moved.reshape(products, rows, columns)
    at = tensor
    while isinstance(view := graph.sole_consumer(at), Reshape | Transpose):
        walked.append(view.name)
        moved, at = view.apply(moved), view.output
        width = moved.shape[-1]
        if width % columns or len(moved.shape) not in (2, 3):
            continue
        runs = width // columns
        images = products // runs if products % runs == 0 else 0
        if images not in (1, moved.shape[0]) or images * rows * width != moved.size:
            continue
        heads = moved.reshape(images, rows, runs, columns).transpose(0, 2, 1, 3).reshape(products, rows, columns)
        if np.array_equal(heads, plain):
            best = (at, runs, len(walked))
    return best[0], best[1], walked[: best[2]]


# --- static masks ---------------------------------------------------------------------------------------------------

MASK_TILE = 16
"""Rows and keys of a tile of a static mask: a tile is left out when all of it is masked."""


def _mark_masked(graph: Graph) -> None:
    """Tell both products of an attention with a constant mask what they need not compute."""
    for op in graph.order():
        if not isinstance(op, Product) or op.runs[2] != 1 or op.mask is not None:
            continue
        keep: Array | None = None
        softmax, at = False, op.output
        while isinstance(user := graph.sole_consumer(at), Host):
            found = _kept(graph, user, at)
            if found is not None:
                keep = found if keep is None else keep & found
            elif user.node.op_type == "Softmax" and _axis(user) in (-1, len(graph.shape(at)) - 1):
                softmax = True
            elif user.node.op_type not in ("Add", "Where"):  # a mask made at run time leaves a constant one as it is
                break
            at = user.output
        if keep is None or not softmax or keep.all():
            continue
        mask = _common(keep, op)
        if mask is None or mask.all() or not keep.any(axis=-1).all():  # a row without any key is no distribution
            continue
        graph.replace(op.name, replace(op, mask=mask))
        for user in graph.consumers(at):
            if isinstance(user, Product) and user.inputs[0] == at and user.size[:2] == mask.shape:
                graph.replace(user.name, replace(user, mask=mask))


def _axis(op: Host) -> int:
    return next((helper.get_attribute_value(a) for a in op.node.attribute if a.name == "axis"), -1)


def _kept(graph: Graph, op: Host, scores: str) -> Array | None:
    """Which scores a masking operation keeps, broadcast to their shape; None when it is no masking operation."""
    shape = graph.shape(scores)
    if op.node.op_type == "Add":
        other = graph.constants.get(op.inputs[1] if op.inputs[0] == scores else op.inputs[0])
        if other is None or other.dtype.kind != "f":
            return None
        keep = other > NEVER
    elif op.node.op_type == "Where":
        condition = graph.constants.get(op.inputs[0])
        if condition is None or scores not in op.inputs[1:]:
            return None
        at = op.inputs[1:].index(scores)
        other = graph.constants.get(op.inputs[2 - at])
        if other is None or (other > NEVER).any():
            return None
        keep = condition.astype(bool) if at == 0 else ~condition.astype(bool)
    else:
        return None
    try:
        return np.broadcast_to(keep, shape)
    except ValueError:
        return None


def _common(keep: Array, op: Product) -> Array | None:
    """The mask [rows, columns] that all products share."""
    rows, _, columns = op.size
    flat = keep.reshape(op.products, rows, columns)
    return _tiled(flat[0]) if (flat == flat[:1]).all() else None


def _tiled(keep: Array) -> Array:
    """The mask in whole tiles: what stands in a tile with anything to keep is kept."""
    rows, columns = (np.arange(0, n, MASK_TILE) for n in keep.shape)
    tiles = np.logical_or.reduceat(np.logical_or.reduceat(keep, rows, axis=0), columns, axis=1)
    return tiles.repeat(MASK_TILE, axis=0).repeat(MASK_TILE, axis=1)[: keep.shape[0], : keep.shape[1]]
