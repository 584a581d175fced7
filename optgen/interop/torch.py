"""torch parameters and grads in packed memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optgen.arrays import Container
from optgen.runtime.torch_grads import fetch_grad, home_of, keep_grad_in


def pack_parameters(parameters: Mapping[str, Any]) -> tuple[Container, Container]:
    """Moves torch parameters into one buffer, and keeps their grads in another of the same layout.

    The parameters stay the objects that they are: their ``data`` is re-pointed, and so is their ``grad``, whenever a
    backward pass has made one. As for torch's optimizers, a parameter without a grad (one that is frozen, that the loss
    does not use, or whose grad ``zero_grad()`` has taken away) is left as it is by steps.

    Args:
        parameters: by name, as ``dict(module.named_parameters())``; on the CPU.

    Returns:
        Containers of the parameters and of the memory of their grads, as :meth:`optgen.Optimizer.bind` takes them.

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
        >>> model.zero_grad()
    """
    import torch

    tree = Container({name.replace("/", "."): p.detach() for name, p in parameters.items()})
    data, grads = tree.pack(), tree.zeros()
    with torch.no_grad():
        for name, parameter in parameters.items():
            key = name.replace("/", ".")
            parameter.data = data[key]
            keep_grad_in(parameter, grads[key])
            fetch_grad(parameter, grads[key], key)
            if parameter.requires_grad and parameter.is_leaf:
                # Grads are there as soon as a backward pass is over, for whoever looks at them before the step.
                parameter.register_post_accumulate_grad_hook(_homing(grads[key]))
    return Container(zip(tree, parameters.values(), strict=True)), grads


def _homing(home: Any) -> Any:
    def hook(parameter: Any) -> None:
        if home_of(parameter) is home:  # not packed again since
            fetch_grad(parameter, home)

    return hook
