"""`jit` and `parallel_jit`: numba's njit with a cache that can never serve a stale kernel.

Numba keys a cached function by the content of its own file, so a cached caller keeps the old code of a callee in
another file. Here the key is the digest of every source file of the rooms with compiled code: when any of them
changes, everything is compiled again, also after an upgrade of the package.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit, prange, typeof

__all__ = ["entry", "jit", "parallel_jit", "prange", "source_digest", "start_compiler"]

F = TypeVar("F", bound=Callable[..., Any])

_COMPILED_ROOMS = ("arch", "kernels", "sim")


@cache
def source_digest() -> str:
    """SHA-256 over the sources of the rooms whose functions are compiled."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in _COMPILED_ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def jit(function: F) -> F:
    """Compile in nopython mode on first call; cached on disk, keyed by all sources."""
    return cast("F", _keyed(njit(cache=True)(function)))


def parallel_jit(function: F) -> F:
    """The same, with the turns of a `prange` divided over numba's threads."""
    return cast("F", _keyed(njit(cache=True, parallel=True)(function)))


def entry(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The machine code of a jitted function for arguments of these types, compiled or loaded; it looks at no type.

    For a caller that knows its types and calls often: numba's dispatch costs as much as a small kernel.
    """
    compiled, type_of = cast("Any", function), cast("Any", typeof)
    code: Callable[..., Any] = compiled.compile(tuple(type_of(argument) for argument in arguments))
    return code


@cache
def start_compiler() -> None:
    """Have numba register what it can compile: a quarter of a second, which the first compiled call would pay for."""
    from numba.core.registry import cpu_target  # this does not start it

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def _keyed(compiled: Any) -> Any:
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None:
        index._source_stamp = source_digest()
    return compiled
