"""Other people's matrix products, each as a call without arguments: onnxruntime, NumPy, SciPy, and torch if installed.

Every call computes out = x @ weight.T for x [rows, K] and a weight [N, K], dense or the nonzeros of a sparse one.
"""

import ctypes
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import scipy.sparse
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gossamer.kernels.vectors import aligned_empty

__all__ = ["Call", "aligned", "blas_kernel", "dense_products", "sparse_products"]

Call = Callable[[], Any]


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A C-contiguous copy at a multiple of 64 bytes, where loads do not straddle cache lines."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def blas_kernel() -> str:
    """The processor that the OpenBLAS of NumPy was dispatched for: it can be told a lesser one, and then is slow."""
    maps = Path("/proc/self/maps")
    libraries = re.findall(r"/\S*openblas\S*", maps.read_text()) if maps.exists() else []
    for library in dict.fromkeys(libraries):
        if "numpy" not in library:
            continue
        for name in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
            function = getattr(ctypes.CDLL(library), name, None)
            if function is not None:
                function.restype = ctypes.c_char_p
                return f"OpenBLAS {function().decode()}"
    return "unknown"


def session(node: Any, constants: dict[str, Any], x: NDArray[Any], kind: int, rank: int = 2) -> Call:
    """A model of one node, run on one thread with its input and output bound; the latter of `rank` dimensions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", kind, [f"d{i}" for i in range(rank)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    run = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = run.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")

    def call() -> Any:
        run.run_with_iobinding(binding)
        return binding

    return call


def dense_products(x: NDArray[np.uint8], weight: NDArray[np.int8], zero_point: int) -> dict[str, Call]:
    """Products with a dense weight: uint8 by int8 (with int8 activations onnxruntime is many times slower), float32.

    MatMulInteger gives int32 sums; QLinearMatMul and QGemm requantise to uint8, as a layer does.
    """
    w, xf = np.ascontiguousarray(weight.T), aligned(x.astype(np.float32))
    wf = aligned(w.astype(np.float32))
    zero = {"xz": np.array(zero_point, np.uint8), "wz": np.array(0, np.int8)}
    scales = {"xs": np.array(0.1, np.float32), "ws": np.array(0.1, np.float32), "ys": np.array(9, np.float32)}
    quantised = {"w": w, **zero, **scales}
    qgemm = helper.make_node(
        "QGemm", ["x", "xs", "xz", "w", "ws", "wz", "c", "ys", "xz"], ["y"], domain="com.microsoft"
    )
    linear = helper.make_node("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "ys", "xz"], ["y"])
    integer = helper.make_node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"])
    out = aligned_empty((x.shape[0], weight.shape[0]), np.float32)
    calls = {
        "MatMulInteger": session(integer, {"w": w, **zero}, x, TensorProto.INT32),
        "QLinearMatMul": session(linear, quantised, x, TensorProto.UINT8),
        "QGemm": session(qgemm, quantised | {"c": np.zeros(w.shape[1], np.int32)}, x, TensorProto.UINT8),
        "ORT float32": session(helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": wf}, xf, TensorProto.FLOAT),
        "NumPy": lambda: np.matmul(xf, wf, out=out),
    }
    if importlib.util.find_spec("torch"):
        calls["torch"] = _torch_dense(xf, wf.T)
    return calls


def sparse_products(x: NDArray[np.float32], weight: NDArray[np.float32], block: bool) -> dict[str, Call]:
    """float32 products with the nonzeros of a weight: compressed rows, and 16 x 16 blocks if it has them.

    SciPy is given the activations as it wants them, transposed and contiguous.
    """
    xt = aligned(x.T)
    csr = scipy.sparse.csr_array(weight)
    calls: dict[str, Call] = {"SciPy CSR": lambda: csr @ xt}
    if block:
        bsr = scipy.sparse.bsr_array(csr, blocksize=(16, 16))
        calls["SciPy BSR"] = lambda: bsr @ xt
    if importlib.util.find_spec("torch"):
        calls["torch CSR"] = _torch_sparse(xt, weight)
    return calls


def _torch_dense(x: NDArray[np.float32], weight: NDArray[np.float32]) -> Call:
    """nn.functional.linear through oneDNN, which is faster than torch.mm on processors that are not Intel's."""
    import torch

    torch.set_num_threads(1)
    activations, parameters = (
        torch.from_numpy(x).to_mkldnn(),
        torch.from_numpy(np.ascontiguousarray(weight)).to_mkldnn(),
    )

    def call() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.linear(activations, parameters)

    return call


def _torch_sparse(xt: NDArray[np.float32], weight: NDArray[np.float32]) -> Call:
    import warnings

    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that compressed rows are in beta
        csr, activations = torch.from_numpy(weight).to_sparse_csr(), torch.from_numpy(xt)

    def call() -> Any:
        with torch.inference_mode():
            return csr @ activations

    return call
