"""What a change of one layer does to the network's outputs, measured on calibration data.

The error of a layer's own outputs says little of that: some layers stand where much is made up for later, others where
it grows. One layer at a time is changed and the network run, so the price is a forward pass of the calibration data
for every layer and pattern. Errors of several layers are then taken to add up, as long as each is small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from onnx import helper

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.calibrate import Calibration, samples
from gossamer.compiler.frontend.export import Writer, export_model
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import model_weight
from gossamer.compiler.frontend.ops import Array, Conv, Linear

__all__ = ["output_errors"]

SAMPLES = 16
"""Of the calibration data that are looked at: enough to tell layers apart, by far."""


def output_errors(
    graph: Graph, variants: Mapping[str, Sequence[Array]], data: Calibration | None
) -> dict[str, list[float]]:
    """|y' - y|² / |y|² of the model's outputs, a mean over outputs, for each of some weights of each layer.

    graph : after legalise.  variants : weights as the array sees them, [out, in / groups, kernel_h, kernel_w], by
    layer; all other layers keep theirs.  data : see calibrate.Calibration; None draws noise, with a warning.
    Raises ModelError for data that do not fit, or a model that onnxruntime cannot run.
    """
    model = export_model(graph)
    own = {name: _constants(graph, name) for name in variants}
    for constants in own.values():  # an initialiser that is an input too can be given another value
        for name, value in constants.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            model.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    session = _session(graph, model)
    needed = {i.name for i in model.graph.input}
    feeds = [
        {name: value for name, value in feed.items() if name in needed}
        for feed in islice(samples(graph, data), SAMPLES)
    ]
    names = [o.name for o in model.graph.output]

    def run(changed: Mapping[str, Array]) -> list[list[Array]]:
        return [[np.asarray(y, np.float64) for y in session.run(names, {**feed, **changed})] for feed in feeds]

    right = run({})

    def error(name: str, weight: Array) -> float:
        changed = _constants(graph, name, weight)
        same = all(np.array_equal(value, own[name][key]) for key, value in changed.items())
        return 0.0 if same else _error(right, run(changed))

    return {name: [error(name, weight) for weight in weights] for name, weights in variants.items()}


def _constants(graph: Graph, name: str, weight: Array | None = None) -> dict[str, Array]:
    """A layer's constants as export_model calls them, with another weight."""
    op = graph.op(name)
    assert isinstance(op, Conv | Linear)
    if weight is not None:
        op = replace(op, weight=model_weight(graph, op, weight))
    writer = Writer(graph, qdq=False)
    writer.operation(op)
    return {name: np.ascontiguousarray(value) for name, value in writer.constants.items()}


def _session(graph: Graph, model: Any) -> Any:
    import onnxruntime as ort  # slow to import, and only calibration needs it

    options = ort.SessionOptions()
    options.log_severity_level = 4  # it would warn that it cannot fold what may be given anew
    options.intra_op_num_threads = 1  # sums in the same order on every machine
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors are many, and say what is wrong with a model
        raise ModelError(f"onnxruntime cannot run {graph.name!r} for calibration: {error}") from error


def _error(right: list[list[Array]], found: list[list[Array]]) -> float:
    """Mean over the outputs of their relative squared error over all samples."""
    shares = []
    for ours, theirs in zip(zip(*found, strict=True), zip(*right, strict=True), strict=True):
        lost = sum(float(np.square(a - b).sum()) for a, b in zip(ours, theirs, strict=True))
        whole = sum(float(np.square(b).sum()) for b in theirs)
        shares.append(lost / whole if whole > 0 else 0.0)
    return float(np.mean(shares))
