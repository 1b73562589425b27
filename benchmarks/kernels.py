"""Packed kernels against onnxruntime, NumPy and SciPy: python benchmarks/kernels.py [--rounds 9] [--core 0]

Everything runs in one process on one core and one thread, takes turns, and is timed by the thread's CPU time, so that
neighbours disturb all alike. A figure is the median over the rounds of the ratio within a round. "of peak" counts
nonzeros only, against a loop of the dot product on registers.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

if "OPENBLAS_CORETYPE" in os.environ:  # a capped BLAS is no opponent; it is read when the library is loaded
    os.environ.pop("OPENBLAS_CORETYPE")
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np
import onnx
import onnxruntime as ort
import scipy.sparse
from numba import njit
from onnx import TensorProto, helper, numpy_helper

from gossamer.arch.numerics import make_requant
from gossamer.kernels import BSR, CSR, NM, Dense, Weight, pack, packed_linear, packed_matmul
from gossamer.kernels.intrinsics import aligned_empty, mac_dense, start, store

SHAPES = {
    "BERT-mini": (128, 256, 256),
    "BERT-base": (128, 768, 768),
    "BERT-base FFN": (384, 768, 3072),
    "BERT-large": (384, 1024, 1024),
    "ResNet-50": (196, 1024, 256),
}
"""Rows, K, N."""


def session(node: Any, constants: dict[str, Any], x: Any, y: int) -> Callable[[], Any]:
    """A model of one node, run with its input and output bound."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", y, ["rows", "n"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    run = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = run.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    return lambda: run.run_with_iobinding(binding)


def opponents(x: Any, dense: Any) -> dict[str, Callable[[], Any]]:
    """Other people's dense and sparse products of the same numbers."""
    w, xf = np.ascontiguousarray(dense.T), x.astype(np.float32)
    wf = w.astype(np.float32)
    zero = {"xz": np.array(7, np.uint8), "wz": np.array(0, np.int8)}
    scales = {"xs": np.array(0.1, np.float32), "ws": np.array(0.1, np.float32), "ys": np.array(9, np.float32)}
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "xz"]
    integer = helper.make_node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"])
    csr, xt = scipy.sparse.csr_array(dense.astype(np.float32)), np.ascontiguousarray(xf.T)
    found = {
        "MatMulInteger": session(integer, {"w": w, **zero}, x, TensorProto.INT32),
        "QLinearMatMul": session(
            helper.make_node("QLinearMatMul", names, ["y"]), {"w": w, **zero, **scales}, x, TensorProto.UINT8
        ),
        "ORT float32": session(helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": wf}, xf, TensorProto.FLOAT),
        "numpy float32": lambda: xf @ wf,
        "scipy CSR": lambda: csr @ xt,
    }
    if dense.shape[0] % 16 == 0 and dense.shape[1] % 16 == 0:
        bsr = scipy.sparse.bsr_array(csr, blocksize=(16, 16))
        found["scipy BSR"] = lambda: bsr @ xt
    return found


@njit
def peak(x: Any, w: Any, first: Any, out: Any, turns: int) -> None:
    """Dot products on registers alone: 16 accumulators, operands that never change."""
    acc = start((0, 0, 0, 0), (0, 0, 0, 0), first, 0)
    for _ in range(turns):
        acc = mac_dense(acc, (0, 0, 0, 0), (0, 0, 0, 0), x, 0, 4, w, 0, None)
    store(acc, (0, 0, 0, 0), out, 0, 256, 64)


def weights(rng: Any, n: int, k: int, sparsities: list[float]) -> dict[str, Weight]:
    """A weight in every format at every sparsity."""
    full = rng.choice([-1, 1], (n, k)) * rng.integers(1, 128, (n, k))

    def cut(keep: Any) -> Any:
        return np.where(keep, full, 0).astype(np.int8)

    def blocks(br: int, bc: int, sparsity: float) -> Weight:
        keep = np.kron(rng.random((n // br, k // bc)) >= sparsity, np.ones((br, bc), bool))
        return BSR.from_dense(cut(keep), block=(br, bc))

    made: dict[str, Weight] = {"dense": Dense.from_dense(full.astype(np.int8))}
    for kept, m in ((2, 4), (1, 4), (1, 8)):
        order = rng.random((n, k // m, m)).argsort(axis=2).argsort(axis=2)
        made[f"{kept}:{m}"] = NM.from_dense(cut((order < kept).reshape(n, k)), n=kept, m=m)
    for s in sparsities:
        for br, bc in ((16, 16), (32, 32), (4, 1)):
            made[f"{br}x{bc} {s:.0%}"] = blocks(br, bc, s)
        made[f"unstructured {s:.0%}"] = CSR.from_dense(cut(rng.random((n, k)) >= s))
    return made


def clock(call: Callable[[], Any], least: float = 0.004) -> float:
    """Seconds of this thread's CPU for one call, over enough calls to fill `least` seconds."""
    calls, spent = 0, 0.0
    begin = time.thread_time()
    while spent < least:
        call()
        calls += 1
        spent = time.thread_time() - begin
    return spent / calls


def compare(name: str, shape: tuple[int, int, int], sparsities: list[float], rounds: int) -> None:
    """A table of one shape."""
    count, k, n = shape
    rng = np.random.default_rng(0)
    x = aligned_empty((count, k), np.uint8)
    x[...] = rng.integers(0, 256, x.shape)
    q = make_requant(np.full(n, 0.001), zero_point=7, lo=0, hi=255)
    sums, codes, bias = aligned_empty((count, n), np.int32), aligned_empty((count, n), np.uint8), np.zeros(n, np.int32)
    turns = 100_000
    registers = (x, aligned_empty((256,), np.int8), np.zeros(64, np.int32), np.empty((4, 64), np.int32), turns)
    print(f"\n### {name}: {count} rows, K = {k}, N = {n}\n")
    print("| weight | kernel | GOP/s, dense-equivalent | of peak | with requantise, of peak | ratio to others |")
    print("|---|---|---|---|---|---|")
    for label, weight in weights(rng, n, k, sparsities).items():
        packed, dense = pack(weight), weight.to_dense()
        work, density = 2 * count * k * n, np.count_nonzero(dense) / dense.size
        calls: dict[str, Callable[[], Any]] = {
            "peak": lambda: peak(*registers),
            "sums": lambda p=packed: packed_matmul(x, p, zero_point=7, out=sums),
            "codes": lambda p=packed: packed_linear(x, p, bias, q, zero_point=7, signed=False, out=codes),
            **opponents(x, dense),
        }
        for call in calls.values():
            call()
        times = {what: [] for what in calls}
        for _ in range(rounds):
            for what, call in calls.items():
                times[what].append(clock(call))
        median = {what: np.array(t) for what, t in times.items()}
        top = turns * 16 * 128 / median["peak"]
        speed = np.median(work / median["sums"]) / 1e9
        shares = [np.median(work * density / median[what] / top) for what in ("sums", "codes")]
        ratios = [
            f"{what} {np.median(median[what] / median['codes' if what == 'QLinearMatMul' else 'sums']):.1f}"
            for what in list(calls)[3:]
        ]
        print(
            f"| {label} | {packed.decision.kernel} | {speed:.0f} | {shares[0]:.0%} | {shares[1]:.0%} "
            f"| {', '.join(ratios)} |",
            flush=True,
        )
    print(f"\nPeak measured: {np.median(top) / 1e9:.0f} GOP/s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--sparsities", nargs="*", type=float, default=[0.5, 0.75, 0.9])
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    for name in options.shapes:
        compare(name, SHAPES[name], options.sparsities, options.rounds)


if __name__ == "__main__":
    main()
