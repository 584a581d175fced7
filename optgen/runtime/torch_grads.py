"""Torch's grads: where a parameter's grad is, when autograd makes another or none.

``zero_grad()`` takes a parameter's grad away, and the next backward pass makes a new tensor. Whoever is bound to the
old one has to look where the grad is now.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

from optgen.errors import LeafError
from optgen.runtime.tree import show

#: For each packed parameter, by its id, the parameter and the tensor that its grad is to lie in.
_homes: dict[int, tuple[Any, Any]] = {}


def keep_grad_in(parameter: Any, home: Any) -> None:
    """Says that the grad of ``parameter`` is to lie in the tensor ``home``, if there is one."""
    key = id(parameter)
    _homes[key] = (weakref.ref(parameter, lambda _: _homes.pop(key, None)), home)


def home_of(parameter: Any) -> Any:
    """The tensor that the grad of ``parameter`` is to lie in; None if nobody has said so."""
    known = _homes.get(id(parameter)) if _homes else None
    return known[1] if known is not None and known[0]() is parameter else None


def follows(parameter: Any, grad: Any) -> bool:
    """Whether the tensor ``grad`` is where the grad of ``parameter`` lies, or is to lie."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(parameter, torch.Tensor) or not isinstance(grad, torch.Tensor):
        return False
    return home_of(parameter) is grad or (parameter.is_leaf and parameter.grad is grad)


def fetch_grad(parameter: Any, home: Any, path: str = "") -> bool:
    """Sees to it that ``home`` holds the grad of ``parameter``, and is it.

    Returns:
        Whether there is one.

    Raises:
        LeafError: if it is no dense tensor of the parameter's shape on the CPU.
    """
    now = parameter.grad
    if now is home:
        return True
    if now is None:
        return False
    import torch

    if now.layout != torch.strided or now.device.type != "cpu" or now.shape != home.shape:
        raise LeafError(
            f"grads {show(path)} must be a dense tensor of shape {tuple(home.shape)} on the CPU "
            f"(got {tuple(now.shape)}, {now.layout}, on {now.device})"
        )
    with torch.no_grad():
        home.copy_(now)
        parameter.grad = home
    return True


def place_of_grad(parameter: Any) -> Any:
    """Where the grad of a packed parameter is: True at home, None if there is none, False elsewhere."""
    home = home_of(parameter)
    if home is None:
        return True
    now = parameter.grad
    return None if now is None else now is home
