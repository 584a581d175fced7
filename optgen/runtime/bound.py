"""A prepared step: everything that depends on the leaves, done once."""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optgen.artifact import KernelInfo
from optgen.dtypes import SIZES
from optgen.errors import DeviceError, HyperparameterError, LeafError
from optgen.hyper import part
from optgen.runtime import memory
from optgen.runtime.execute import Call, prepare, run_together
from optgen.runtime.tree import is_tree

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer, Work


def scalar_state(calls: Iterable[Call]) -> dict[str, float]:
    """The scalar state after these calls, from the one with the widest arithmetic; empty where there is none."""
    widest = max(calls, key=lambda call: SIZES[call.kernel.dtypes["compute"]], default=None)
    return {} if widest is None else dict(zip(widest.kernel.returned, widest.returned, strict=True))


@dataclass
class _Prepared:
    """One call of a module: for all leaves that share a kernel.

    Attributes:
        scalars: as they were last pushed.
        step_at: where among them the step is, or None.
        state_at: where among them the scalar state is, by name.
    """

    kernel: KernelInfo
    call: Call
    scalars: list[float] = field(default_factory=list)
    step_at: int | None = None
    state_at: tuple[tuple[int, str], ...] = ()


class BoundStep:
    """Params, grads and state bound to an optimizer. Made by :meth:`Optimizer.bind`.

    It holds on to the memory that the leaves had: fill the same grads anew before each step, and bind again after
    an array was replaced or a tensor re-pointed.

    Attributes:
        state: the state that it was bound to; each step counts in it.

    Example:
        >>> import numpy as np, optgen
        >>> opt, w, g = optgen.prebuilt("sgd"), np.zeros(2, np.float32), np.ones(2, np.float32)
        >>> bound = opt.bind(w, g, opt.init(w))
        >>> for _ in range(3):
        ...     bound.step(lr=0.5)
        >>> w.tolist(), bound.state["step"]
        ([-1.5, -1.5], 3)
    """

    def __init__(self, optimizer: Optimizer, works: Sequence[Work], state: MutableMapping[str, Any]) -> None:
        self.state = state
        self._optimizer = optimizer
        self._given: dict[str, Any] | None = None
        self._tensors = []
        groups: dict[str, tuple[KernelInfo, list[list[Any]]]] = {}
        for work in works:
            for leaf, array in zip(work.leaves, work.arrays, strict=True):
                if array is not leaf.array:
                    why = "JAX arrays never change" if leaf.kind == "jax" else "it is not contiguous, or not aligned"
                    raise LeafError(f"leaf '{leaf.path}' cannot be bound, because its memory cannot be used: {why}")
            self._tensors += [
                leaf.owner
                for leaf, o in zip(work.leaves, work.kernel.operands, strict=True)
                if leaf.kind == "torch" and o.role != "input"
            ]
            groups.setdefault(work.kernel.name, (work.kernel, []))[1].append(work.arrays)
        device = optimizer.device
        self._calls = [
            _Prepared(kernel, prepare(device, *optimizer.module(kernel, device), kernel, leaves))
            for kernel, leaves in groups.values()
        ]
        self._only = self._calls[0] if len(self._calls) == 1 else None
        self._keeps_scalars = bool(optimizer.manifest.scalars)
        self._process = os.getpid()

    @property
    def usable(self) -> bool:
        """False in a process that was forked from the one that made it."""
        return self._process == os.getpid()

    def step(self, **hypers: Any) -> None:
        """One update, in place.

        Args:
            hypers: hyperparameters, each one number for all leaves.

        Raises:
            HyperparameterError: if one is unknown, missing, NaN or out of its range. Nothing has been changed then.
            DeviceError: in a process that was forked from the one that bound it.
        """
        if self._process != os.getpid():
            raise DeviceError("a bound step does not survive a fork: bind again in the child")
        for value in hypers.values():
            # Arrays and tensors may hold another number by now, and be equal to themselves all the same.
            if type(value) is not float and type(value) is not int:
                self._set(hypers)
                self._given = None
                break
        else:
            if hypers != self._given:
                self._set(hypers)
                self._given = dict(hypers)
        count = int(self.state["step"]) + 1
        for each in self._calls:
            if each.step_at is not None:
                each.scalars[each.step_at] = float(count)
            for position, name in each.state_at:
                each.scalars[position] = self._optimizer.scalar(self.state, name)
        if self._only is not None:
            self._only.call.run(self._only.scalars)
        else:
            run_together([each.call for each in self._calls], [each.scalars for each in self._calls])
        if self._keeps_scalars:
            self.state.update(scalar_state(each.call for each in self._calls))
        if self._tensors:
            memory.bump_versions(self._tensors)
        self.state["step"] = count

    def release(self) -> bool:
        """Lets go of the arrays, whose owner then sees to it that they live while steps are made.

        Returns:
            Whether it could: a module that does not work in place in the arrays' own memory needs them.
        """
        calls = [each.call for each in self._calls]
        if not all(call.trusted for call in calls):
            return False
        for each in self._calls:
            each.call.arrays = ()
        self._tensors = []
        return True

    def _set(self, hypers: dict[str, Any]) -> None:
        if trees := [name for name, value in hypers.items() if is_tree(value)]:
            raise HyperparameterError(f"'{trees[0]}' of a bound step must be one number for all leaves")
        if "step" in hypers:
            raise HyperparameterError("'step' is counted in the state: set state['step'] instead")
        values = self._optimizer.resolve({**hypers, "step": 1} if self._optimizer.counts_steps else hypers)
        for each in self._calls:
            scalars = each.kernel.scalars
            each.state_at = tuple((i, s.hyper) for i, s in enumerate(scalars) if s.hyper in each.kernel.returned)
            known = {**values, **self._optimizer.manifest.scalars}
            each.scalars = [part(known[s.hyper], s.part) for s in scalars]
            each.step_at = next((i for i, s in enumerate(scalars) if s.hyper == "step"), None)
