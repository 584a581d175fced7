"""``name=value`` as users type it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_WORDS = {"true": True, "false": False, "none": None}


def settings_of(texts: Iterable[str]) -> dict[str, Any]:
    """``name=value`` texts as a dict: true and false as bools, none as None, all else as numbers.

    Raises:
        ValueError: if one is nothing of the kind.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise ValueError(f"must be name=value (got {text!r})")
        if value.lower() in _WORDS:
            settings[name] = _WORDS[value.lower()]
            continue
        try:
            settings[name] = float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, true, false or none (got {value!r})") from None
    return settings
