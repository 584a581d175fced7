"""What each function of the API is made of: its rule, its bundles, and the names of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from optgen.hyper import Hyper
from optgen.rules import get_rule

#: The rules call it ``eps``, ivy ``epsilon``.
_PUBLIC = {"eps": "epsilon"}


@dataclass(frozen=True)
class Operation:
    """A function of the API.

    Attributes:
        rule: name of its rule, in the convention ``ivy``.
        inputs: the rule's names of the tensors given, the one whose dtype decides first.
        labels: the function's names of them.
        results: the rule's names of the tensors that come back.
        like: for each result, the position in ``inputs`` of the tensor whose kind it has.
        per_element: whether there is an ``lr``, which may be a tensor.
    """

    rule: str
    inputs: tuple[str, ...]
    labels: tuple[str, ...]
    results: tuple[str, ...]
    like: tuple[int, ...]
    per_element: bool

    @cached_property
    def bundle(self) -> str:
        """The bundle in which lr, if any, is a scalar."""
        return f"{self.rule}.ivy"

    @cached_property
    def tensor_bundle(self) -> str:
        """The bundle in which lr is a tensor."""
        return f"{self.rule}.ivy-lr_tensor"

    @cached_property
    def vjp_bundle(self) -> str:
        """The bundle of the derivative, in which lr is a tensor."""
        return f"{self.rule}_vjp.ivy"

    @cached_property
    def hypers(self) -> dict[str, Hyper]:
        """The hyperparameters by the rule's names, with the function's names in them."""
        rule = get_rule(self.rule, "ivy")
        return {h.name: replace(h, name=_PUBLIC.get(h.name, h.name)) for h in rule.hypers}


GRADIENT_DESCENT = Operation("gradient_descent", ("w", "g"), ("w", "dcdw"), ("w",), (0,), True)
OPTIMIZER = replace(GRADIENT_DESCENT, labels=("w", "effective_grad"))
ADAM = Operation("adam", ("w", "g", "m", "v"), ("w", "dcdw", "mw_tm1", "vw_tm1"), ("w", "m", "v"), (0, 2, 3), True)
ADAM_STEP = Operation("adam_step", ("g", "m", "v"), ("dcdw", "mw", "vw"), ("delta", "m", "v"), (0, 1, 2), False)
