"""torch parameters and grads in packed memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optgen.arrays import Container


def pack_parameters(parameters: Mapping[str, Any]) -> tuple[Container, Container]:
    """Moves torch parameters into one buffer, and gives them grads in another of the same layout.

    The parameters stay the objects that they are: their ``data`` and ``grad`` are re-pointed. Let the grads be zeroed
    in place (``zero_grad(set_to_none=False)``), or they leave their buffer again.

    Args:
        parameters: by name, as ``dict(module.named_parameters())``; on the CPU.

    Returns:
        Containers of the parameters and of their grads, as :meth:`optgen.Optimizer.bind` takes them.

    Raises:
        LeafError: if a parameter is not on the CPU, or of a dtype that modules do not know.

    Example:
        >>> import optgen, torch
        >>> from optgen.interop.torch import pack_parameters
        >>> model = torch.nn.Linear(3, 2)
        >>> params, grads = pack_parameters(dict(model.named_parameters()))
        >>> opt = optgen.prebuilt("adamw")
        >>> bound = opt.bind(params, grads, opt.init(params))
        >>> model(torch.ones(3)).sum().backward()
        >>> bound.step(lr=1e-3)
    """
    import torch

    tree = Container({name.replace("/", "."): p.detach() for name, p in parameters.items()})
    data, grads = tree.pack(), tree.zeros()
    with torch.no_grad():
        for name, parameter in parameters.items():
            key = name.replace("/", ".")
            if parameter.grad is not None:
                grads[key].copy_(parameter.grad)
            parameter.data = data[key]
            parameter.grad = grads[key]
    return Container(zip(tree, parameters.values(), strict=True)), grads
