"""Files of named arrays: ``.npz`` and ``.safetensors``. A tree's leaves are named by their paths: ``encoder/0/w``."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from optgen.artifact.tensors import load_tensors, save_tensors
from optgen.errors import FileError, LeafError

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".npz", ".safetensors")


def check_suffix(path: Path) -> None:
    """Refuses names that end in neither ``.npz`` nor ``.safetensors``.

    Raises:
        FileError: naming both.
    """
    if path.suffix not in SUFFIXES:
        raise FileError(f"{path} must end in {' or '.join(SUFFIXES)}")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file, each with memory of its own, by name.

    Raises:
        FileError: if there is no such file, or it is damaged, or holds bfloat16 and ml_dtypes is missing.
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
            arrays = load_tensors(path.read_bytes())[0]
    except ImportError as error:
        raise FileError(f"{path} holds bfloat16, which in numpy needs ml_dtypes: pip install ml_dtypes") from error
    except Exception as error:  # zip, header, dtype: each has its own for a damaged file
        raise FileError(f"{path} cannot be read: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind == "V" and array.dtype.name != "bfloat16":
            raise LeafError(f"'{name}' of {path} is not of a type that npz knows (bfloat16?): use .safetensors")
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file of arrays, whole or not at all.

    Raises:
        LeafError: for bfloat16 in an npz file, which cannot hold it.
    """
    import numpy as np

    check_suffix(path)
    if path.suffix == ".safetensors":
        data = save_tensors(arrays)
        write_whole(path, lambda file: file.write(data))
        return
    for name, array in arrays.items():
        if array.dtype.name == "bfloat16":
            raise LeafError(f"npz files cannot hold '{name}', which is bfloat16: write .safetensors")
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file beside its place, and moves it there when it is on disk: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Puts a folder's entries on disk, so that a file that was moved there is there after a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
