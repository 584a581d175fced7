"""Functions of C's library that the compiler calls where WebAssembly has no instruction for them, as an object file.

They are written in WebAssembly's instructions here: there is no C library to link.
"""

from __future__ import annotations

from collections.abc import Iterable

_F32, _F64 = 0x7D, 0x7C
#: Instructions by type of number: their codes.
_CODES = {
    "f32": {"type": _F32, "abs": 0x8B, "neg": 0x8C, "trunc": 0x8F, "nearest": 0x90, "sub": 0x93, "add": 0x92,
            "min": 0x96, "max": 0x97, "copysign": 0x98, "ne": 0x5C, "ge": 0x60},
    "f64": {"type": _F64, "abs": 0x99, "neg": 0x9A, "trunc": 0x9D, "nearest": 0x9E, "sub": 0xA1, "add": 0xA0,
            "min": 0xA4, "max": 0xA5, "copysign": 0xA6, "ne": 0x62, "ge": 0x66},
}  # fmt: skip
_CONSTANTS = {
    "f32": {"half": b"\x43\x00\x00\x00\x3f", "one": b"\x43\x00\x00\x80\x3f"},
    "f64": {"half": b"\x44\x00\x00\x00\x00\x00\x00\xe0\x3f", "one": b"\x44\x00\x00\x00\x00\x00\x00\xf0\x3f"},
}


def missing(code: bytes) -> list[str]:
    """The functions of this module that an object file calls."""
    return [name for name in _functions() if _text("env") + _text(name) in code]


def math_object(names: Iterable[str], features: Iterable[str] = ()) -> bytes:
    """An object file with some of the functions.

    Args:
        names: of :func:`missing`.
        features: that the objects have which it is linked with, without their signs.
    """
    functions = {name: _functions()[name] for name in names}
    kinds = [
        bytes([0x60]) + _list([bytes([t]) for t in taken]) + _list([bytes([t])]) for t, taken, _ in functions.values()
    ]
    bodies = [body + b"\x0b" for _, _, body in functions.values()]
    symbols = [b"\x00\x00" + _number(i) + _text(name) for i, name in enumerate(functions)]
    parts = [
        _section(1, _list(kinds)),
        _section(3, _list([_number(i) for i in range(len(functions))])),
        _section(10, _list([_sized(b"\x00" + body) for body in bodies])),
        _section(0, _text("linking") + b"\x02" + b"\x08" + _sized(_list(symbols))),
    ]
    wanted = [b"+" + _text(feature) for feature in features]
    if wanted:
        parts.append(_section(0, _text("target_features") + _list(wanted)))
    return b"\x00asm\x01\x00\x00\x00" + b"".join(parts)


def _functions() -> dict[str, tuple[int, list[int], bytes]]:
    """By name: the result's type, those of the arguments, and the instructions."""
    found: dict[str, tuple[int, list[int], bytes]] = {}
    for kind, suffix in (("f32", "f"), ("f64", "")):
        c, constants = _CODES[kind], _CONSTANTS[kind]
        t = c["type"]
        for name, op in (("fmax", "max"), ("fmin", "min")):  # of a NaN and a number, the number
            body = b"".join([
                _get(0), _get(0), bytes([c["ne"]]), b"\x04", bytes([t]), _get(1), b"\x05",
                _get(1), _get(1), bytes([c["ne"]]), b"\x04", bytes([t]), _get(0), b"\x05",
                _get(0), _get(1), bytes([c[op]]), b"\x0b\x0b",
            ])  # fmt: skip
            found[name + suffix] = (t, [t, t], body)
        whole = _get(0) + bytes([c["trunc"]])
        away = b"".join([  # where what is cut off is half or more, one further from zero
            whole, constants["one"], _get(0), bytes([c["copysign"], c["add"]]), whole,
            _get(0), whole, bytes([c["sub"], c["abs"]]), constants["half"], bytes([c["ge"]]), b"\x1b",
        ])  # fmt: skip
        found["round" + suffix] = (t, [t], away + _get(0) + bytes([c["copysign"]]))
        for name in ("roundeven", "rint", "nearbyint"):
            found[name + suffix] = (t, [t], _get(0) + bytes([c["nearest"]]))
    return found


def _get(local: int) -> bytes:
    return b"\x20" + bytes([local])


def _number(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _sized(data: bytes) -> bytes:
    return _number(len(data)) + data


def _text(text: str) -> bytes:
    return _sized(text.encode())


def _list(items: list[bytes]) -> bytes:
    return _number(len(items)) + b"".join(items)


def _section(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + _sized(data)
