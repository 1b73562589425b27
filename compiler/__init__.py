"""The compiler: model -> graph -> sparsify, quantise -> lower -> map and tile -> schedule -> allocate -> Program.

passes: the front end's passes in order, from frontend/ (what to compute) and sparsity/ (which weights are zero).
layers: the quantised Network between front end and back end, which knows no hardware.
backend: where and when, on one spec.
"""
