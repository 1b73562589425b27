"""The inputs of layers on calibration data, run by onnxruntime on the floating-point model, as moments."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.calibrate import Calibration, samples
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Conv, Linear
from gossamer.compiler.sparsity.sparsifiers.moments import Moments
from gossamer.compiler.sparsity.sparsifiers.view import View, view_of

__all__ = ["input_moments"]

POSITIONS = 2048
"""Output positions of one sample that count; of larger maps, as many are taken at even distances."""


def input_moments(graph: Graph, layers: Sequence[Conv | Linear], data: Calibration | None) -> dict[str, Moments]:
    """Moments of every layer's inputs, by layer name.

    graph : after legalise.  data : see calibrate.Calibration; None draws noise, with a warning.
    Raises ModelError for data that do not fit, or a model that onnxruntime cannot run.
    """
    views = {op.name: view_of(graph, op) for op in layers}
    sums = {view: _Sum() for view in views.values()}
    run = _runner(graph, sorted({view.tensor for view in sums}))
    for feed in samples(graph, data):
        values = run(feed)
        for view, total in sums.items():
            layout = graph.info(view.tensor).layout
            assert layout is not None
            total.add(_rows(layout.to_array(values[view.tensor]), view))
    scaled = {view: total.moments() for view, total in sums.items()}
    return {name: scaled[view] for name, view in views.items()}


class _Sum:
    """The sum of x xᵀ, taken over many rows at a time: adding up K x K numbers costs as much as K rows."""

    def __init__(self) -> None:
        self.waiting: list[NDArray[np.float32]] = []
        self.gram: NDArray[np.float64] | None = None
        self.count = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """rows : float32 [groups, positions, K]."""
        self.waiting.append(rows)
        self.count += rows.shape[1]
        if sum(r.shape[1] for r in self.waiting) >= rows.shape[2]:
            self._flush()

    def _flush(self) -> None:
        rows = np.concatenate(self.waiting, axis=1)
        gram = np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64)
        self.gram = gram if self.gram is None else self.gram + gram
        self.waiting = []

    def moments(self) -> Moments:
        """The mean."""
        if self.waiting:
            self._flush()
        assert self.gram is not None
        return Moments(gram=self.gram / self.count, count=self.count)


def _rows(x: Array, view: View) -> NDArray[np.float32]:
    """What output positions read of [N, C, H, W], float32 [groups, positions, taps * C / groups]."""
    top, left, bottom, right = view.pads
    x = np.pad(x.astype(np.float32), ((0, 0), (0, 0), (top, bottom), (left, right)))
    span = [(k - 1) * d + 1 for k, d in zip(view.kernel, view.dilation, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    seen = seen[:, :, :: view.stride[0], :: view.stride[1], :: view.dilation[0], :: view.dilation[1]]
    n, c, h, w, kh, kw = seen.shape
    chosen = np.linspace(0, n * h * w - 1, min(n * h * w, POSITIONS)).astype(np.int64)
    image, y, x_ = np.unravel_index(chosen, (n, h, w))
    rows = seen[image, :, y, x_].reshape(len(chosen), view.groups, c // view.groups, kh * kw)
    return np.ascontiguousarray(rows.transpose(1, 0, 3, 2)).reshape(view.groups, len(chosen), -1)


def _runner(graph: Graph, tensors: Sequence[str]) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """A function from the model's inputs to the values of some of its tensors."""
    import onnxruntime as ort  # slow to import, and only calibration needs it

    inner = [t for t in tensors if t not in graph.inputs]
    part = replace(graph.copy(), outputs=tuple(inner))
    part.prune()
    model = export_model(part)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # sums in the same order on every machine
    if not inner:
        return dict
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors are many, and say what is wrong with a model
        raise ModelError(f"onnxruntime cannot run {graph.name!r} for calibration: {error}") from error

    names = [i.name for i in session.get_inputs()]

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        read = {name: feed[name] for name in names}
        return {**feed, **dict(zip(inner, session.run(inner, read), strict=True))}

    return run
