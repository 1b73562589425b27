"""Element-wise functions the accelerator knows: a clamp of codes, or a table of 256 entries."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["KINDS", "Function"]

Real = NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Real) -> Real:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # this form does not overflow


_TABLES: dict[str, Callable[[Real, float, float], Real]] = {
    "leaky_relu": lambda x, alpha, _: np.where(x < 0, alpha * x, x),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0),
    "hard_swish": lambda x, _, __: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "sigmoid": lambda x, _, __: _sigmoid(x),
    "silu": lambda x, _, __: x * _sigmoid(x),
    "quick_gelu": lambda x, _, __: x * _sigmoid(1.702 * x),
    "tanh": lambda x, _, __: np.tanh(x),
    "gelu": lambda x, _, __: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "gelu_tanh": lambda x, _, __: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "elu": lambda x, alpha, _: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x),
    "softplus": lambda x, _, __: np.logaddexp(0.0, x),
    "selu": lambda x, alpha, beta: beta * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x),
    "celu": lambda x, alpha, _: np.maximum(x, 0.0) + np.minimum(alpha * np.expm1(np.minimum(x, 0.0) / alpha), 0.0),
    "softsign": lambda x, _, __: x / (1.0 + np.abs(x)),
    "abs": lambda x, _, __: np.abs(x),
    "mish": lambda x, _, __: x * np.tanh(np.logaddexp(0.0, x)),
}

KINDS = ("clip", *_TABLES)
"""Every kind of Function."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of one real number.

    kind : one of KINDS;  alpha, beta : as in the ONNX operator of that name;  lo, hi : bounds of "clip" (Relu: 0, inf).
    """

    kind: str
    alpha: float = 0.0
    beta: float = 0.0
    lo: float = -math.inf
    hi: float = math.inf

    @property
    def is_clamp(self) -> bool:
        """Whether a clamp of codes does it, without a table."""
        return self.kind == "clip"

    def __call__(self, x: ArrayLike) -> Real:
        real = np.asarray(x, dtype=np.float64)
        if self.is_clamp:
            return np.clip(real, self.lo, self.hi)
        return np.asarray(_TABLES[self.kind](real, self.alpha, self.beta), dtype=np.float64)

    def __str__(self) -> str:
        if self.is_clamp:
            return "relu" if (self.lo, self.hi) == (0.0, math.inf) else f"clip[{self.lo:g}, {self.hi:g}]"
        one, two = (self.alpha,), (self.alpha, self.beta)
        used = {"leaky_relu": one, "elu": one, "celu": one, "hard_sigmoid": two, "selu": two}
        return f"{self.kind}({', '.join(f'{v:g}' for v in used[self.kind])})" if self.kind in used else self.kind
