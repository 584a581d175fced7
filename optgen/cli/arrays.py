"""Files of named arrays: ``.npz`` and ``.safetensors``. A tree's leaves are named by their paths: ``encoder/0/w``."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optgen.errors import LeafError, OptgenError

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".npz", ".safetensors")


class FileError(OptgenError, ValueError):
    """A file of arrays is not there, cannot be read, or has nothing to do with the task."""


def check_suffix(path: Path) -> None:
    """Refuses names that end in neither ``.npz`` nor ``.safetensors``.

    Raises:
        FileError: naming both.
    """
    if path.suffix not in SUFFIXES:
        raise FileError(f"{path} must end in {' or '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        _safetensors()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file, each with memory of its own, by name.

    Raises:
        FileError: if there is no such file, or it is damaged, or its format needs a package that is missing.
        LeafError: for bfloat16 in an npz file, which cannot hold it.
    """
    import numpy as np

    check_suffix(path)
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise FileError(f"{path} is no npz file")  # numpy would say that it is a pickle
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        else:
            # A copy, since these are views of the file's pages.
            arrays = {name: np.array(array) for name, array in _safetensors().load_file(path).items()}
    except Exception as error:  # zip, header, dtype: each library has its own for a damaged file
        if path.suffix == ".safetensors" and "bfloat16" in str(error):
            raise FileError(f"{path} holds bfloat16, which in numpy needs ml_dtypes: pip install ml_dtypes") from error
        raise FileError(f"{path} cannot be read: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind == "V" and array.dtype.name != "bfloat16":
            raise LeafError(f"'{name}' of {path} is not of a type that npz knows (bfloat16?): use .safetensors")
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file of arrays, whole or not at all.

    Raises:
        LeafError: for bfloat16 in an npz file, which cannot hold it.
        FileError: if the format needs a package that is missing.
    """
    import numpy as np

    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if path.suffix == ".npz":
                for name, array in arrays.items():
                    if array.dtype.name == "bfloat16":
                        raise LeafError(f"npz files cannot hold '{name}', which is bfloat16: write .safetensors")
                np.savez(file, allow_pickle=False, **arrays)
            else:
                file.write(_safetensors().save({n: np.ascontiguousarray(a) for n, a in arrays.items()}))
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise FileError(".safetensors files need a package: pip install 'optgen[safetensors]'") from error
    with contextlib.suppress(ImportError):
        import ml_dtypes  # noqa: F401  makes bfloat16 known to numpy, by which name safetensors asks for it
    return safetensors.numpy
