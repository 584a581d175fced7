"""A prepared step: everything that depends on the leaves, done once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optgen.artifact import KernelInfo
from optgen.errors import DeviceError, HyperparameterError, LeafError
from optgen.hyper import Part, part
from optgen.runtime import memory
from optgen.runtime.counts import LEAF_STEP, Own, count_of
from optgen.runtime.execute import Call, prepare, run_together, scalar_state
from optgen.runtime.groups import Group
from optgen.runtime.micro import UNSEEN, MicroStep, window
from optgen.runtime.torch_grads import fetch_grad, follows
from optgen.runtime.tree import is_tree
from optgen.runtime.watch import Watch

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer, Work


@dataclass
class _Prepared:
    """One call of a module: for all leaves that share a kernel, a group and a count of steps.

    Attributes:
        paths: of its leaves, where their count is not the tree's.
        scalars: as they were last pushed.
        step_at: where among them the step is, and which part of it.
        state_at: where among them the scalar state is, by name.
    """

    kernel: KernelInfo
    call: Call
    group: Group
    paths: tuple[str, ...] = ()
    scalars: list[float] = field(default_factory=list)
    step_at: tuple[tuple[int, Part], ...] = ()
    state_at: tuple[tuple[int, str], ...] = ()


class BoundStep:
    """Params, grads and state bound to an optimizer. Made by :meth:`Optimizer.bind`.

    It holds on to the memory that the leaves had: fill the same grads anew before each step, and bind again after
    an array of the params or grads was replaced. It sees for itself where a tensor was re-pointed, arrays of the state
    were replaced, or a parameter's grad, bound as ``parameter.grad`` or packed, is another tensor now, or none: such a
    parameter is left as it is.

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

    def __init__(
        self,
        optimizer: Optimizer,
        works: Sequence[Work],
        lacking: Collection[str],
        state: MutableMapping[str, Any],
        collect: Callable[[MutableMapping[str, Any]], tuple[Sequence[Work], Collection[str]]] | None = None,
    ) -> None:
        """Prepares the leaves.

        Args:
            optimizer: whose.
            works: the leaves that have grads.
            lacking: the paths of the others.
            state: of the tree.
            collect: gives both anew, for a step that is to look for itself whether something has changed.
        """
        self.state = state
        self.mean_only: int | None = None
        self._optimizer = optimizer
        self._process = os.getpid()
        self._collect = collect
        self._counts = optimizer.counts if optimizer.counts.wanted else None
        manifest = optimizer.manifest
        mean = manifest.micro.state if manifest.micro else None
        self._mean_at = [manifest.param, *manifest.inputs, *manifest.state].index(mean) if mean else 0
        self._keeps_scalars = bool(manifest.scalars)
        self._take(works, lacking)

    def _take(self, works: Sequence[Work], lacking: Collection[str]) -> None:
        """Takes leaves, those of the first time or others."""
        for work in works:
            for leaf, array in zip(work.leaves, work.arrays, strict=True):
                if array is not leaf.array:
                    why = "JAX arrays never change" if leaf.kind == "jax" else "it is not contiguous, or not aligned"
                    raise LeafError(f"leaf '{leaf.path}' cannot be bound, because its memory cannot be used: {why}")
        self._works, self._lacking = list(works), frozenset(lacking)
        self._pairs = []
        self._watch: Watch | None = None
        if self._collect is not None:
            at = [o.name for o in works[0].kernel.operands].index(self._optimizer.manifest.inputs[0]) if works else 0
            self._pairs = [
                (w.path, w.leaves[0].owner, w.leaves[at].owner)
                for w in works
                if w.leaves[0].kind == "torch" and follows(w.leaves[0].owner, w.leaves[at].owner)
            ]
            self._watch = Watch(works, self.state, self._optimizer.manifest.state)
        self._prepare(self._lacking)

    def _prepare(self, absent: frozenset[str]) -> None:
        """Prepares the calls for all leaves but those that are ``absent``."""
        optimizer, manifest = self._optimizer, self._optimizer.manifest
        self._absent, self._unseen = absent, frozenset[str]()
        self._given: dict[str, Any] | None = None
        works = [work for work in self._works if work.path not in absent] if absent else self._works
        own = self._counts.of(self.state) if self._counts is not None else {}
        self._behind = frozenset(work.path for work in works if work.path in own) if own else frozenset[str]()
        self._known: Any = None  # the counts of leaves that were last written, as they were
        mean = manifest.micro.state if manifest.micro else None
        self._tensors, self._means = [], []
        groups: dict[tuple[str, int, Own | None], tuple[KernelInfo, Group, list[list[Any]], list[int], list[str]]] = {}
        for work in works:
            for leaf, operand in zip(work.leaves, work.kernel.operands, strict=True):
                if leaf.kind == "torch" and operand.role != "input":
                    self._tensors.append(leaf.owner)
                    if operand.name == mean:
                        self._means.append(leaf.owner)
            group = optimizer.groups.of(work.path)
            key = (work.kernel.name, group.index, own.get(work.path))
            mine = groups.setdefault(key, (work.kernel, group, [], [], []))
            mine[2].append(work.arrays)
            mine[3].append(work.number)
            if work.path in own:
                mine[4].append(work.path)
        device = optimizer.device
        self._calls = [
            _Prepared(
                kernel, prepare(device, *optimizer.module(kernel, device), kernel, leaves, numbers), group, tuple(paths)
            )
            for kernel, group, leaves, numbers, paths in groups.values()
        ]
        self._micro = MicroStep(optimizer, works) if mean else None
        self._only = self._calls[0] if len(self._calls) == 1 else None
        self._busy = bool(self._pairs or self._lacking or absent or self._behind or mean)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DeviceError(
            "a bound step cannot be copied or pickled, since it works in the memory of this process: copy the "
            "optimizer, params and state, and bind again"
        )

    @property
    def usable(self) -> bool:
        """False in a process that was forked from the one that made it."""
        return self._process == os.getpid()

    def fits(self, state: MutableMapping[str, Any]) -> bool:
        """Whether its calls are those for the counts of leaves in ``state``."""
        if self._micro is not None and UNSEEN in state:
            return False
        known = state.get(LEAF_STEP)
        if self._counts is None or (known is None and not self._behind):
            return True
        if known is self._known and known is not None and not self._behind:
            return True  # all that it has are leaves that take no part
        own = self._counts.of(state)
        return self._behind == own.keys() - self._absent and all(
            own[path] == own[each.paths[0]] for each in self._calls for path in each.paths
        )

    def step(self, **hypers: Any) -> None:
        """One update, in place.

        Args:
            hypers: hyperparameters, each one number for all leaves.

        Raises:
            HyperparameterError: if one is unknown, missing, NaN or out of its range. Nothing has been changed then.
            TreeError, LeafError: if what the state holds, or where a tensor is now, cannot be used.
            DeviceError: in a process that was forked from the one that bound it.
        """
        if self._process != os.getpid():
            raise DeviceError("a bound step does not survive a fork: bind again in the child")
        if self._watch is not None and (self._busy or LEAF_STEP in self.state or self._watch.moved(self.state)):
            self._look()
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
        state = self.state
        count = state["step"]
        if type(count) is not int or count < 0:
            count = count_of(count)
        count += 1
        if self._micro is not None:
            self.mean_only = None if self._micro.due(state) else self._mean_at
            if self.mean_only is not None:
                self._micro.run(state)
                if self._unseen:
                    state[UNSEEN] = dict.fromkeys(sorted(self._unseen), 1)
                else:
                    state.pop(UNSEEN, None)
                if self._means:
                    memory.bump_versions(self._means)
                return
        own: dict[str, Own] = {}
        if self._counts is not None and (self._absent or LEAF_STEP in state):
            own = self._own(state)
        for each in self._calls:
            mine = own[each.paths[0]] if each.paths else None
            number = float(count) if mine is None else mine[0] + 1
            for position, which in each.step_at:
                each.scalars[position] = number if which == "value" else part(number, which)
            for position, name in each.state_at:
                each.scalars[position] = self._number(name, mine)
        if self._only is not None:
            self._only.call.run(self._only.scalars)
        else:
            run_together([each.call for each in self._calls], [each.scalars for each in self._calls])
        if self._keeps_scalars or own:
            self._keep(own)
        if self._tensors:
            memory.bump_versions(self._tensors)
        state["step"] = count

    def _number(self, name: str, own: Own | None) -> float:
        """A number of scalar state, of leaves that have it by themselves or of all."""
        if own is not None and self._counts is not None and name in self._counts.scalars:
            return own[1 + self._counts.scalars.index(name)]
        return self._optimizer.scalar(self.state, name)

    def _own(self, state: MutableMapping[str, Any]) -> dict[str, Own]:
        """The counts of leaves that have their own; none where that changes nothing."""
        assert self._counts is not None
        known = state.get(LEAF_STEP)
        if known is not None and known is self._known and not self._behind and not self._counts.skipped:
            return {}
        return self._counts.behind(state, self._counts.of(state), self._absent)

    def _keep(self, own: dict[str, Own]) -> None:
        """Puts scalar state, and the counts of leaves, into the state."""
        state, counts = self.state, self._counts
        new: dict[str, Any] = {}
        if self._keeps_scalars:
            mains = [each.call for each in self._calls if not each.paths]
            new = scalar_state(mains or [each.call for each in self._calls])
            if not mains and counts is not None:
                new = {name: value for name, value in new.items() if name not in counts.scalars}
            if not self._calls and self._micro is not None:
                new[self._micro.count] = 0.0
        if counts is not None and own:
            fresh = {
                path: tuple(scalar_state([each.call])[n] for n in counts.scalars)
                for each in self._calls
                for path in each.paths
            }
            new |= counts.after(own, fresh, self._absent, counts.grown(state, new))
            self._known = new.get(LEAF_STEP)
        state.update(new)
        if self._micro is not None:
            state.pop(UNSEEN, None)

    def _look(self) -> None:
        """Sees what has changed since the last step, and prepares what must be prepared anew."""
        assert self._watch is not None
        if self._watch.moved(self.state):
            assert self._collect is not None
            self._take(*self._collect(self.state))
        absent = self._lacking
        if self._pairs and (gone := [path for path, p, home in self._pairs if not fetch_grad(p, home, path)]):
            absent = absent | frozenset(gone)
        unseen = frozenset[str]()
        if self._micro is not None and (absent or UNSEEN in self.state):
            info = self._optimizer.manifest.micro
            assert info is not None
            unseen = window(self.state, info, absent)
            for path in absent - unseen:
                home = next((home for found, _, home in self._pairs if found == path), None)
                if home is None:
                    raise LeafError(
                        f"grads '{path}' cannot be missing from a bound step while the mean of its grads is being "
                        "made: bind when the mean has been used, or give zeros"
                    )
                home.zero_()  # what it adds to the mean
            absent = unseen
        if absent != self._absent or not self._fits_counts():
            self._prepare(absent)
        self._unseen = unseen

    def _fits_counts(self) -> bool:
        known, micro = self.state.get(LEAF_STEP), self._micro
        if known is not None and known is self._known and not self._behind:
            return True
        self._micro = None
        try:
            return self.fits(self.state)
        finally:
            self._micro = micro

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
        self._works, self._tensors, self._means = [], [], []
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
