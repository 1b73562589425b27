"""Files that commands and the API read and write: arrays by name, and outputs that must not be an input."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.arch.errors import GossamerError, ModelError

__all__ = ["check_output", "load_arrays", "save_arrays"]


_NPY = b"\x93NUMPY"
"""What a file of one array begins with."""


def check_output(output: Path | None, **inputs: object) -> None:
    """Raise GossamerError when an output is one of the files that were read, by whatever name.

    inputs : what each is called in the message, and its path, a list of paths, or None; what is no file is no matter.
    """
    if output is None or not output.exists():
        return
    for what, paths in inputs.items():
        for path in paths if isinstance(paths, list | tuple) else [paths]:
            if isinstance(path, str | Path) and Path(path).exists() and output.samefile(path):
                raise GossamerError(f"{str(output)!r} is the {what} itself and would be overwritten; name another file")


def load_arrays(path: str | Path) -> dict[str, Any]:
    """Arrays by name from an .npz file. Raises ModelError."""
    import numpy as np  # `import gossamer` stays light

    try:
        with open(path, "rb") as file:
            if file.read(len(_NPY)) == _NPY:
                raise ModelError(f"{str(path)!r} holds one nameless array; save with numpy.savez(file, name=array)")
            if not zipfile.is_zipfile(file):  # numpy.load would take it for a pickle, and say how to trust it
                raise ModelError(f"{str(path)!r} is not an .npz file of numbers: it is no archive of numpy.savez")
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            return {name: _array(arrays, name, path) for name in arrays.files}
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _array(arrays: Mapping[str, Any], name: str, path: str | Path) -> Any:
    import numpy as np

    try:
        array = arrays[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(
            f"{str(path)!r} is not an .npz file of numbers: {name!r} is damaged or holds objects"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ModelError(f"{str(path)!r} is not an .npz file of numbers: {name!r} is no array")
    return array


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file. numpy.savez takes names as keywords: it could not write an output called "file"."""
    import numpy as np

    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
