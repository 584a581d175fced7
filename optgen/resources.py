"""Where the package's own data lies: inside the wheel, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    packed = _PACKAGE / "_data" / name
    return packed if packed.is_dir() else _PACKAGE.parent / name


def templates() -> Path:
    """The folder of the MLIR skeletons."""
    return _folder("templates")


def artifacts() -> Path:
    """The folder of the prebuilt bundles."""
    return _folder("artifacts")
