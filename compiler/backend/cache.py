"""Layers that were packed and mapped before in this process, so that they need not be again.

What a layer's step streams and mapping depend on is digested: weights, geometry, where its tensors' channels stand,
and the spec. Names, scales and addresses are not part of it, so one layer may serve another.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, Generic, TypeVar

from gossamer.compiler.backend.matmul import MatMulProblem
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.layers import Conv

__all__ = ["LIMIT", "Cache", "problem_key", "product_key"]

T = TypeVar("T")

LIMIT = 1 << 29
"""Bytes of weights and streams that are kept; what was used longest ago goes first."""


class Cache(Generic[T]):
    """Values by digest, at most `limit` bytes of them."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.hits = 0
        self._held: OrderedDict[bytes, tuple[T, int]] = OrderedDict()
        self._size = 0

    def get(self, key: bytes, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The value for a key, made if it is not known; size tells its bytes."""
        if key in self._held:
            self._held.move_to_end(key)
            self.hits += 1
            return self._held[key][0]
        value = make()
        self._held[key] = value, size(value)
        self._size += self._held[key][1]
        while self._size > self.limit:
            self._size -= self._held.popitem(last=False)[1][1]
        return value


def product_key(problem: MatMulProblem) -> bytes:
    """Digest of everything that mapping a product looks at."""
    layer = problem.layer
    places = [(p.shape, p.block, p.border, p.heads) for p in (problem.a, problem.b, problem.output)]
    facts = [problem.spec.to_dict(), layer.transposed, layer.products, layer.mask_tile, places, problem.out]
    digest = hashlib.blake2b(json.dumps(facts).encode())
    if layer.mask is not None:
        digest.update(f"{layer.mask.shape}".encode())
        digest.update(layer.mask.tobytes())
    return digest.digest()


def problem_key(problem: Problem) -> bytes:
    """Digest of everything that packing and mapping a layer look at."""
    layer = problem.layer
    geometry: list[Any] = [problem.kernel, problem.stride, problem.dilation, problem.origin, problem.out]
    for place in (*problem.inputs, problem.output, problem.residual):
        geometry.append(None if place is None else (place.shape, place.block, place.border, place.heads))
    geometry.append([astuple(unit) for unit in problem.units])
    digest = hashlib.blake2b(json.dumps([problem.spec.to_dict(), type(layer).__name__, geometry]).encode())
    if isinstance(layer, Conv):
        digest.update(f"{layer.groups} {layer.weight.shape}".encode())
        digest.update(layer.weight.tobytes())
    return digest.digest()
