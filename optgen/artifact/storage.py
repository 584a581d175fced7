"""A bundle's files: one directory, or the same as one zip file. Written whole or not at all.

The zip has fixed dates and sorted names, so that equal contents are equal bytes (with the same zlib). It is deflated:
modules shrink to a quarter, and inflating them takes 2 ms.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from optgen.errors import BundleError, BundleNotFoundError

MANIFEST = "manifest.json"
_DATE = (1980, 1, 1, 0, 0, 0)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_files(path: str | os.PathLike[str], files: Mapping[str, bytes], *, marker: str = MANIFEST) -> Path:
    """Writes a bundle: a zip file if ``path`` ends in ``.optgen``, else a directory.

    A directory that is there is replaced if it holds the file ``marker``, by which it is known to be one of optgen's.

    It is written beside its place and then moved there, so that a reader sees the old bundle, or the new one, or
    none, but never a part.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".optgen":
        if target.is_dir():
            raise BundleError(f"{target} is a directory; a name that ends in .optgen means one file")
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as raw:
                with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                    for name in sorted(files, key=_order):
                        info = zipfile.ZipInfo(name, _DATE)
                        info.external_attr = 0o644 << 16
                        info.compress_type = zipfile.ZIP_DEFLATED
                        archive.writestr(info, files[name])
                raw.flush()
                os.fsync(raw.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return target
    if target.exists() and not (target / marker).exists() and (target.is_file() or any(target.iterdir())):
        raise BundleError(f"{target} exists and is not a {'bundle' if marker == MANIFEST else 'package of optgen'}: "
                          "not overwritten")  # fmt: skip
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    old = staging / "old"  # a directory cannot be replaced in one step: the old one goes aside first
    new = staging / "new"
    try:
        for name, data in files.items():
            file = new / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _order(name: str) -> tuple[bool, str]:
    return (name != MANIFEST, name)


def read_files(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Every file of the bundle at ``path``.

    Raises:
        BundleNotFoundError: if there is nothing there.
        BundleError: if it is no bundle, or damaged.
    """
    source = Path(path)
    if not source.exists():
        raise BundleNotFoundError(f"there is no bundle at {source}")
    if source.is_dir():
        if not (source / MANIFEST).exists():
            raise BundleError(f"{source} is not a bundle: it has no {MANIFEST}")
        return {f.relative_to(source).as_posix(): f.read_bytes() for f in sorted(source.rglob("*")) if f.is_file()}
    try:
        with zipfile.ZipFile(source) as archive:
            files = {}
            for info in archive.infolist():
                parts = PurePosixPath(info.filename).parts
                if not info.is_dir() and ".." not in parts and not info.filename.startswith("/"):
                    files[info.filename] = archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise BundleError(f"{source} is damaged or not a bundle: {error}") from error
    if MANIFEST not in files:
        raise BundleError(f"{source} is not a bundle: it has no {MANIFEST}")
    return files


def verify(
    path: str | os.PathLike[str], files: Mapping[str, bytes], hashes: Mapping[str, str], named: Iterable[str]
) -> dict[str, bytes]:
    """The files that a manifest lists, each of them what its hash says.

    Args:
        path: of the bundle, for errors.
        files: what was read from it.
        hashes: SHA-256 by name, from the manifest.
        named: the files that the manifest refers to.

    Raises:
        BundleError: if one is missing, has changed, or has no hash.
    """
    for name, expected in hashes.items():
        if name not in files:
            raise BundleError(f"{path} is damaged: '{name}' is missing")
        if (actual := digest(files[name])) != expected:
            raise BundleError(
                f"{path} is damaged: SHA-256 of '{name}' is {actual[:16]}..., the manifest says {expected[:16]}..."
            )
    if unlisted := sorted(set(named) - hashes.keys()):
        raise BundleError(f"{path} is damaged: its manifest has no hash for '{unlisted[0]}'")
    return {name: files[name] for name in hashes}
