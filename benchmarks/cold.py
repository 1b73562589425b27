"""Time until the first product: the import, and a layer's first call with an empty cache and with a full one.

CPU time of a process, as everywhere in these benchmarks. Python has its bytecode: the first process writes it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["cold_start"]

IMPORT = """
import time
begin = time.process_time()
import gossamer.kernels
print(time.process_time() - begin)
"""

FIRST_CALL = """
import time
import numpy as np
from gossamer.kernels import BSR, prepare, prepare_float
dense = np.kron(np.eye(48), np.ones((16, 16))).astype(np.int8)
if {kind!r} == "int8":
    layer, x = prepare(BSR.from_dense(dense, block=(16, 16))), np.ones((128, 768), np.uint8)
else:
    layer, x = prepare_float(dense.astype(np.float32)), np.ones((128, 768), np.float32)
begin = time.process_time()
layer(x)
print(time.process_time() - begin)
"""


def cold_start(times: int = 5) -> Iterator[str]:
    """Lines of text; the best of several processes each, since disks and neighbours only add."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": folder, "NUMBA_CACHE_DIR": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield f"Import of gossamer.kernels: {best(IMPORT, times, environment) * 1e3:.0f} ms."
        for kind in ("int8", "float"):
            code = FIRST_CALL.format(kind=kind)
            cold, warm = best(code, 1, environment), best(code, times, environment)
            yield f"First call of a layer, {kind}: {cold * 1e3:.0f} ms compiled, {warm * 1e3:.0f} ms from the cache."


def best(code: str, times: int, environment: dict[str, str]) -> float:
    """The least number that a program prints."""
    command = [sys.executable, "-c", code]
    runs = (subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(times))
    return min(float(run.stdout) for run in runs)
