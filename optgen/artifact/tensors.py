"""The safetensors format, read and written with numpy alone.

Eight bytes say how long the header is; the header is JSON, from each name to ``dtype``, ``shape`` and ``data_offsets``
in what follows it: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_METADATA = "__metadata__"
_LONGEST = 100_000_000  # bytes of a header; what the safetensors package allows
_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
_NAMES = {name: code for code, name in _TYPES.items()}


def save_tensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file. The same arrays always give the same bytes.

    Args:
        arrays: by name; bfloat16 as ml_dtypes has it.
        metadata: further texts, by name.

    Raises:
        ValueError: if an array has a dtype that the format does not know.
    """
    header: dict[str, Any] = {} if metadata is None else {_METADATA: dict(metadata)}
    parts, end = [], 0
    # Wide elements first, so that each array is aligned to its own.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if array.dtype.name not in _NAMES or name == _METADATA:
            raise ValueError(f"'{name}' cannot be in a safetensors file ({array.dtype})")
        native = np.ascontiguousarray(array)
        if not native.dtype.isnative:
            native = native.astype(native.dtype.newbyteorder("="))
        start, end = end, end + native.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
        parts.append(native.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def load_tensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a safetensors file holds: arrays, each with memory of its own, and metadata.

    Raises:
        ValueError: if the bytes are damaged, or no safetensors file.
        ImportError: for bfloat16 where ml_dtypes is not installed.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_LONGEST, len(data) - 8):
        raise ValueError("it is no safetensors file, or was cut off")
    body = memoryview(data)[8 + length :]
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop(_METADATA, {})
        entries = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        arrays, end = {}, 0
        for name, entry in entries:
            dtype, shape = _dtype(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            start, stop = entry["data_offsets"]
            count = math.prod(shape)
            if start != end or min(shape, default=0) < 0 or stop - start != count * dtype.itemsize or stop > len(body):
                raise ValueError(f"'{name}' is not where the header says")
            arrays[name] = np.frombuffer(body[start:stop], dtype).reshape(shape).copy()
            end = stop
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its header is damaged ({error})") from error
    if end != len(body):
        raise ValueError(f"it has {len(body) - end} bytes that belong to no tensor")
    return {name: arrays[name] for name in header}, dict(metadata)


def _dtype(code: str) -> np.dtype[Any]:
    if code not in _TYPES:
        raise ValueError(f"numpy has no dtype {code}")
    if code == "BF16":
        import ml_dtypes  # noqa: F401  makes bfloat16 known to numpy by its name

    found: np.dtype[Any] = np.dtype(_TYPES[code])
    return found
