"""Ranges of activations, measured by onnxruntime on the floating-point model."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array
from gossamer.compiler.frontend.shapes import run_session

__all__ = ["METHODS", "Calibration", "calibrate", "channel_ranges", "materialised", "samples"]

Calibration = Mapping[str, Array] | Iterable[Array | Mapping[str, Array]]
"""{input: [samples, ...]}, or a sequence of samples: arrays for a model of one input, else {input: array}."""

METHODS = ("minmax", "percentile", "entropy")
"""Ways to choose a range from what was seen."""

RANDOM_SAMPLES = 4


def materialised(data: Calibration | None) -> Calibration | None:
    """The data in a form that can be read again and again: a generator is used up by its first reader.

    Raises ModelError when there is none in it.
    """
    if data is None or isinstance(data, Mapping):
        return data
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise ModelError(f"calibration must be {{input: array}} or a sequence of samples, not {type(data).__name__}")
    found = list(data)
    if not found:
        raise ModelError(_EMPTY)
    return found


_EMPTY = "calibration data is empty; must hold at least one sample (a generator that has been read is empty, too)"


def samples(graph: Graph, data: Calibration | None) -> list[dict[str, Array]]:
    """Calibration data as a list of feeds of exactly the model's input shapes.

    data : see Calibration; an array may hold several samples along its first axis. None draws random data with a
    warning. Raises ModelError for unknown names and wrong shapes.
    """
    if not graph.inputs:  # always the same
        return [{}]
    if data is None:
        return _random(graph)
    feeds = list(_feeds(graph, data))
    if not feeds:
        raise ModelError(_EMPTY)
    return feeds


def _random(graph: Graph) -> list[dict[str, Array]]:
    warnings.warn(
        f"no calibration data: ranges come from {RANDOM_SAMPLES} samples of seeded standard-normal noise, so accuracy "
        "will be poor; pass calibration=",
        UserWarning,
        stacklevel=2,
    )
    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(RANDOM_SAMPLES):
        feed: dict[str, Array] = {}
        for name in graph.inputs:
            info = graph.info(name)
            real = rng.standard_normal(graph.shape(name))
            feed[name] = real.astype(info.dtype) if info.dtype == "float32" else np.zeros(real.shape, info.dtype)
        feeds.append(feed)
    return feeds


def _feeds(graph: Graph, data: Calibration) -> Iterator[dict[str, Array]]:
    if isinstance(data, Mapping):
        yield from _split(graph, data)
        return
    for sample in data:
        if isinstance(sample, Mapping):
            yield from _split(graph, sample)
        elif len(graph.inputs) == 1:
            yield from _split(graph, {graph.inputs[0]: np.asarray(sample)})
        else:
            names = ", ".join(graph.inputs)
            raise ModelError(f"calibration samples must be {{input: array}} for a model with the inputs {names}")


def _split(graph: Graph, feed: Mapping[str, Any]) -> Iterator[dict[str, Array]]:
    """Cut arrays that hold several samples along the first axis."""
    unknown = sorted(set(feed) - set(graph.inputs))
    missing = sorted(set(graph.inputs) - set(feed))
    if unknown or missing:
        what = f"unknown input {unknown[0]!r}" if unknown else f"no data for input {missing[0]!r}"
        raise ModelError(f"calibration: {what}; the model's inputs are {', '.join(graph.inputs)}")
    parts = {name: _parts(name, np.asarray(feed[name]), graph) for name in graph.inputs}
    counts = {name: len(p) for name, p in parts.items()}
    if len(set(counts.values())) > 1:
        raise ModelError(f"calibration: inputs have different numbers of samples: {counts}")
    for index in range(next(iter(counts.values()), 0)):
        yield {name: p[index] for name, p in parts.items()}


def _parts(name: str, value: Array, graph: Graph) -> list[Array]:
    shape, dtype = graph.shape(name), graph.info(name).dtype
    if value.shape == shape[1:] and shape[:1] == (1,):
        value = value[np.newaxis]
    fits = value.ndim == len(shape) and value.shape[1:] == shape[1:] and shape and value.shape[0] % shape[0] == 0
    if value.shape != shape and not fits:
        raise ModelError(
            f"calibration for input {name!r} has shape {list(value.shape)}; must be {list(shape)}, or several such "
            "samples along the first axis"
        )
    if value.dtype.kind not in "fiub" or (dtype == "float32" and not np.isfinite(value).all()):
        raise ModelError(f"calibration for input {name!r} must hold finite numbers")
    if value.dtype.kind == "f" and dtype != "float32":  # as simulate does: 0.7 is no pixel of a uint8 input
        raise ModelError(f"calibration for input {name!r} must be of {dtype}, not {value.dtype}")
    value = value.astype(dtype)
    return [value] if not shape else [value[i : i + shape[0]] for i in range(0, value.shape[0], shape[0])]


def calibrate(
    graph: Graph, tensors: Sequence[str], data: Calibration | None, method: str = "minmax"
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value that matters of each named tensor.

    method : one of METHODS. Raises ModelError for another method, or when a range is not finite.
    """
    if method not in METHODS:
        raise ModelError(f"calibration method must be one of {', '.join(METHODS)}, not {method!r}")
    if not tensors:
        return {}
    feeds = samples(graph, data)
    try:
        found = _ranges(graph, set(tensors), feeds, method)
    except Exception as error:  # onnxruntime's errors are many, and say what is wrong with a model
        raise ModelError(f"onnxruntime cannot run {graph.name!r} for calibration: {error}") from error
    ranges = {}
    for name in tensors:
        lo, hi = (float(np.asarray(v).reshape(-1)[0]) for v in found[name])
        if not (np.isfinite(lo) and np.isfinite(hi)):
            raise ModelError(f"tensor {name!r} reaches {lo:g} to {hi:g} on the calibration data; must be finite")
        ranges[name] = (lo, hi)
    return ranges


def _ranges(graph: Graph, tensors: set[str], feeds: list[dict[str, Array]], method: str) -> dict[str, tuple[Any, Any]]:
    if method == "minmax":
        return _extremes(graph, tensors, feeds)
    with tempfile.TemporaryDirectory() as folder:
        return _histograms(graph, tensors, feeds, method, Path(folder))


def _extremes(graph: Graph, tensors: set[str], feeds: list[dict[str, Array]]) -> dict[str, tuple[Any, Any]]:
    """The smallest and largest value of each tensor, reduced by onnxruntime itself: only two numbers leave it."""
    model = export_model(graph)
    names = sorted(tensors)
    outputs = []
    for name in names:
        for kind in ("Min", "Max"):
            outputs.append(f"{name}/calibrated{kind}")
            model.graph.node.append(helper.make_node(f"Reduce{kind}", [name], outputs[-1:], keepdims=0))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, []) for o in outputs)
    session = run_session(model)
    seen = np.array([session.run(outputs, feed) for feed in feeds], dtype=np.float64)
    lowest, highest = seen[:, 0::2].min(axis=0), seen[:, 1::2].max(axis=0)
    return {name: (lowest[i], highest[i]) for i, name in enumerate(names)}


def channel_ranges(graph: Graph, axes: Mapping[str, int], data: Calibration | None) -> dict[str, tuple[Array, Array]]:
    """Smallest and largest value of every channel of the named tensors: float64 [channels] each.

    axes : the channel axis of each. Raises ModelError as calibrate does.
    """
    if not axes:
        return {}
    model = export_model(graph)
    outputs = []
    for name, axis in axes.items():
        others = [a for a in range(len(graph.shape(name))) if a != axis]
        for kind in ("Min", "Max"):
            outputs.append(f"{name}/channel{kind}")
            model.graph.node.append(_reduce(model, kind, name, outputs[-1], others))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, [None]) for o in outputs)
    try:
        session = run_session(model)
        seen = [session.run(outputs, feed) for feed in samples(graph, data)]
    except ModelError:
        raise
    except Exception as error:  # as in calibrate
        raise ModelError(f"onnxruntime cannot run {graph.name!r} for calibration: {error}") from error
    found = {}
    for i, name in enumerate(axes):
        lo = np.min([run[2 * i] for run in seen], axis=0).astype(np.float64)
        found[name] = lo, np.max([run[2 * i + 1] for run in seen], axis=0).astype(np.float64)
    return found


def _reduce(model: onnx.ModelProto, kind: str, source: str, target: str, axes: list[int]) -> onnx.NodeProto:
    """ReduceMin or ReduceMax over some axes: an attribute until opset 17, an input from 18 on."""
    version = next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
    if version < 18:
        return helper.make_node(f"Reduce{kind}", [source], [target], axes=axes, keepdims=0)
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{target}/axes"))
    return helper.make_node(f"Reduce{kind}", [source, f"{target}/axes"], [target], keepdims=0)


def _histograms(
    graph: Graph, tensors: set[str], feeds: list[dict[str, Array]], method: str, folder: Path
) -> dict[str, tuple[Any, Any]]:
    """Ranges by onnxruntime's calibrators, which look at how values are distributed."""
    from onnxruntime.quantization import calibrate as ort

    path = folder / "model.onnx"
    onnx.save(export_model(graph), path)
    augmented = str(folder / "augmented.onnx")
    calibrator: Any
    if method == "percentile":
        calibrator = ort.PercentileCalibrater(path, augmented_model_path=augmented, num_bins=2048, percentile=99.99)
    else:
        calibrator = ort.EntropyCalibrater(path, augmented_model_path=augmented)
    chosen = calibrator.select_tensors_to_calibrate
    calibrator.select_tensors_to_calibrate = lambda model: (tensors, chosen(model)[1])
    calibrator.augment_graph()
    calibrator.create_inference_session()
    with contextlib.redirect_stdout(io.StringIO()):  # the histogram calibrators print as they go
        for feed in feeds:  # one at a time: a calibrator keeps every tensor of what it is given
            calibrator.collect_data(_Once(feed))
        return {name: data.range_value for name, data in calibrator.compute_data().items()}


class _Once:
    """A data reader of a single feed."""

    def __init__(self, feed: dict[str, Array]) -> None:
        self.feed: dict[str, Array] | None = feed

    def get_next(self) -> dict[str, Array] | None:
        """The feed, then None."""
        feed, self.feed = self.feed, None
        return feed

    def __len__(self) -> int:
        return 1
