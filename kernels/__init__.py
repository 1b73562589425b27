"""CPU kernels: exact integer arithmetic that the simulator and the tests rely on, plain and as fast as the CPU allows.

formats: what a sparse weight is.  matmul, conv, pool: sums and maxima in int32, by plain loops.
epilogue: back to 8 bits.  bounds: the proof that int32 is enough.
stream: the step stream. Under it steps (the compiled product, which is the simulator's too) and step_vectors (the
instructions it is made of).

layer: a weight made ready once, with all that follows its sums, and then called: the fast way in. Under it choose
(which kernel, and why), pack and scaling (weights and parameters laid out), vectorised and fast (the kernels),
intrinsics, codes and vectors (the instructions they are made of); and for many rows and 4x1 weights on_lines,
line_groups, line_kernels and line_vectors.
float_layer: the same for float32 weights; by the same kernels where rows of a weight share (float_rows), else on lines
(float_lines, float_panels, float_kernels, float_vectors); float_after is what follows the sums.
conv_layer: convolutions on top of both; windows is where their inputs lie.

Public functions check what they are given; the compiled ones under them, private, trust it. Nothing is compiled before
its first call.
"""

from gossamer.kernels.bounds import max_accumulator
from gossamer.kernels.choose import Decision, choose
from gossamer.kernels.conv import conv2d, window_count
from gossamer.kernels.conv_layer import ConvLayer, prepare_conv, prepare_float_conv
from gossamer.kernels.epilogue import requantise
from gossamer.kernels.float_layer import FloatCodes, prepare_float
from gossamer.kernels.formats import BSR, CSR, NM, Dense, Weight
from gossamer.kernels.layer import Layer, prepare
from gossamer.kernels.matmul import bsr_matmul, csr_matmul, dense_matmul, nm_matmul, spmm
from gossamer.kernels.pool import max_pool2d, sum_pool2d
from gossamer.kernels.stream import stream_matmul
from gossamer.kernels.vectors import aligned_empty

__all__ = [
    "BSR",
    "CSR",
    "NM",
    "ConvLayer",
    "Decision",
    "Dense",
    "FloatCodes",
    "Layer",
    "Weight",
    "aligned_empty",
    "bsr_matmul",
    "choose",
    "conv2d",
    "csr_matmul",
    "dense_matmul",
    "max_accumulator",
    "max_pool2d",
    "nm_matmul",
    "prepare",
    "prepare_conv",
    "prepare_float",
    "prepare_float_conv",
    "requantise",
    "spmm",
    "stream_matmul",
    "sum_pool2d",
    "window_count",
]
