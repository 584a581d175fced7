"""A prepared step: everything that depends on the leaves, done once."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optgen.artifact import KernelInfo
from optgen.errors import DeviceError, HyperparameterError, LeafError
from optgen.hyper import Part, part
from optgen.runtime import memory
from optgen.runtime.counts import count_of
from optgen.runtime.execute import Call, prepare, run_together, scalar_state
from optgen.runtime.groups import Group
from optgen.runtime.micro import MicroStep
from optgen.runtime.tree import is_tree

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer, Work


@dataclass
class _Prepared:
    """One call of a module: for all leaves that share a kernel and a group.

    Attributes:
        scalars: as they were last pushed.
        step_at: where among them the step is, and which part of it.
        state_at: where among them the scalar state is, by name.
    """

    kernel: KernelInfo
    call: Call
    group: Group
    scalars: list[float] = field(default_factory=list)
    step_at: tuple[tuple[int, Part], ...] = ()
    state_at: tuple[tuple[int, str], ...] = ()


class BoundStep:
    """Params, grads and state bound to an optimizer. Made by :meth:`Optimizer.bind`.

    It holds on to the memory that the leaves had: fill the same grads anew before each step, and bind again after
    an array was replaced or a tensor re-pointed.

    Attributes:
        state: the state that it was bound to; each step counts in it.
        mean_only: where the last step added grads to a mean and did nothing else, the position of that mean among
            params, inputs and state tensors; else None.

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
        self._means = []
        manifest = optimizer.manifest
        mean = manifest.micro.state if manifest.micro else None
        self.mean_only: int | None = None
        self._mean_at = [manifest.param, *manifest.inputs, *manifest.state].index(mean) if mean else 0
        groups: dict[tuple[str, int], tuple[KernelInfo, Group, list[list[Any]], list[int]]] = {}
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
            if mean:
                self._means += [
                    leaf.owner
                    for leaf, o in zip(work.leaves, work.kernel.operands, strict=True)
                    if leaf.kind == "torch" and o.name == mean
                ]
            group = optimizer.groups.of(work.path)
            mine = groups.setdefault((work.kernel.name, group.index), (work.kernel, group, [], []))
            mine[2].append(work.arrays)
            mine[3].append(work.number)
        device = optimizer.device
        self._calls = [
            _Prepared(kernel, prepare(device, *optimizer.module(kernel, device), kernel, leaves, numbers), group)
            for kernel, group, leaves, numbers in groups.values()
        ]
        self._micro = MicroStep(optimizer, works) if mean else None
        self._only = self._calls[0] if len(self._calls) == 1 else None
        self._keeps_scalars = bool(optimizer.manifest.scalars)
        self._process = os.getpid()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DeviceError(
            "a bound step cannot be copied or pickled, since it works in the memory of this process: copy the "
            "optimizer, params and state, and bind again"
        )

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
        if self._micro is not None:
            self.mean_only = None if self._micro.due(self.state) else self._mean_at
            if self.mean_only is not None:
                self._micro.run(self.state)
                if self._means:
                    memory.bump_versions(self._means)
                return
        count = count_of(self.state["step"]) + 1
        for each in self._calls:
            for position, which in each.step_at:
                each.scalars[position] = part(float(count), which)
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
        if self._micro is not None:
            # A step makes some of these calls alone; what the others do is known from earlier steps.
            calls += self._micro.calls
            known = self._optimizer.trusted
            known.update(call.kernel.name for call in calls if call.trusted)
            for call in calls:
                call.trusted = call.kernel.name in known
        if not all(call.trusted for call in calls):
            return False
        for call in calls:
            call.arrays = ()
        self._tensors, self._means = [], []
        return True

    def _set(self, hypers: dict[str, Any]) -> None:
        if trees := [name for name, value in hypers.items() if is_tree(value)]:
            raise HyperparameterError(f"'{trees[0]}' of a bound step must be one number for all leaves")
        if "step" in hypers:
            raise HyperparameterError("'step' is counted in the state: set state['step'] instead")
        if hypers:
            self._optimizer.check_given(hypers)
        values = self._optimizer.resolve({**hypers, "step": 1} if self._optimizer.counts_steps else hypers)
        if self._micro is not None:
            self._micro.set(values)
        for each in self._calls:
            scalars = each.kernel.scalars
            each.state_at = tuple((i, s.hyper) for i, s in enumerate(scalars) if s.hyper in each.kernel.returned)
            own = values if each.group.index == 0 else each.group.values(values)
            known = {**own, **self._optimizer.manifest.scalars}
            each.scalars = [part(known[s.hyper], s.part) for s in scalars]
            each.step_at = tuple((i, s.part) for i, s in enumerate(scalars) if s.hyper == "step")
