"""The leaves of a training step: found in the user's trees, checked, and held from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.artifact.step import StepArgument, StepManifest
from optgen.dtypes import element_name
from optgen.errors import HyperparameterError, LeafError, TreeError
from optgen.hyper import Scalar
from optgen.runtime import memory
from optgen.runtime.counts import count_of, number_of
from optgen.runtime.device import Binding, Device
from optgen.runtime.memory import Leaf
from optgen.runtime.recall import Recalled
from optgen.runtime.tree import leaves_of, show

_BATCH = (
    ": a step is compiled for one batch size. Pad the batch and weigh the loss, leave out what remains, or compile a "
    "step for this size, too"
)


class StepLeaves:
    """What a step's programs take, by the trees that it comes in.

    Attributes:
        hypers: position and part of each hyperparameter's argument.
        number_arguments: position and argument of the numbers in the state.
        numbers: their names and roles.
        rng: position of the key; -1 if there is none.
    """

    def __init__(self, manifest: StepManifest) -> None:
        self.manifest = manifest
        arguments = list(enumerate(manifest.arguments))
        self._params = {a.path: i for i, a in arguments if a.role in ("param", "frozen")}
        self._state = {a.path: i for i, a in arguments if a.role == "state"}
        self._batches = {role: {a.path: i for i, a in arguments if a.role == role} for role in ("batch", "eval_batch")}
        self.number_arguments = [(i, a) for i, a in arguments if a.role in ("count", "scalar")]
        self.numbers = [(a.path, a.role) for _, a in self.number_arguments]
        self.hypers: list[tuple[int, Scalar]] = [(i, a.hyper) for i, a in arguments if a.hyper is not None]
        self.rng = next((i for i, a in arguments if a.role == "rng"), -1)

    def params(self, tree: Any, *, written: bool) -> dict[int, Leaf]:
        """The leaves of the params, by the position of their argument.

        Raises:
            TreeError, LeafError: if they are not what the step was compiled for.
        """
        return self._collect(tree, self._params, "params", written=written)

    def batch(self, tree: Any, role: str) -> dict[int, Leaf]:
        """The leaves of a batch.

        Raises:
            TreeError, LeafError: likewise.
        """
        return self._collect(tree, self._batches[role], "batch", written=False, hint=_BATCH)

    def hold(self, params: Any, state: Any) -> Held:
        """Params and state, checked, to be written.

        Raises:
            TreeError, LeafError, OverlapError: likewise, and if two of them share memory.
        """
        self.counts(state)
        tensors = self._tensors(state)
        found = self.params(params, written=True)
        found |= self._collect(tensors, self._state, "state", written=True)
        arguments = self.manifest.arguments
        spans = [
            (leaf, arguments[i].name.partition("/")[0], arguments[i].role != "frozen") for i, leaf in found.items()
        ]
        memory.check_overlap(spans)
        return Held(found, spans, self, params, tensors)

    def _tensors(self, state: Any) -> Any:
        names = {name for name, _ in self.numbers}
        if isinstance(state, Mapping) and names:
            return {key: child for key, child in state.items() if key not in names}
        return state

    def counts(self, state: Any) -> dict[str, float]:
        """The numbers of the state.

        Raises:
            TreeError: if one is missing, or no finite number.
        """
        found = {}
        for name, role in self.numbers:
            if not isinstance(state, Mapping) or name not in state:
                raise TreeError(f"'state' must be what init or the last step left: a dict with '{name}'")
            number = count_of(state[name], f"state '{name}'") if role == "count" else number_of(state, name)
            if role == "count" and number >= 2**31 - 1:
                raise TreeError(f"state '{name}' must be below 2**31 - 1 (got {state[name]!r})")
            found[name] = number
        return found

    def key(self, rng: Any) -> np.ndarray | None:
        """The key of random numbers.

        Raises:
            HyperparameterError: if there is none where one is needed, or one where none is.
            LeafError: if it is no key.
        """
        if self.rng < 0:
            if rng is not None:
                raise HyperparameterError(f"'rng' must not be given: '{self.manifest.name}' takes no key")
            return None
        if rng is None:
            raise HyperparameterError(
                f"'rng' must be given: '{self.manifest.name}' takes a key of random numbers, another for each step"
            )
        return _key(rng)

    def _collect(
        self, tree: Any, expected: Mapping[str, int], what: str, *, written: bool, hint: str = ""
    ) -> dict[int, Leaf]:
        found = leaves_of(tree)
        name = self.manifest.name
        for path in found:
            if path not in expected:
                raise TreeError(
                    f"'{what}' of step '{name}' must not have the leaf {show(path)}: it was compiled without"
                )
        leaves = {}
        for path, index in expected.items():
            if path not in found:
                raise TreeError(f"'{what}' of step '{name}' must have the leaf {show(path)} (it is missing)")
            argument = self.manifest.arguments[index]
            leaves[index] = _leaf(found[path], argument, what, written and argument.role != "frozen", hint)
        return leaves


class Held:
    """Params and state of a training loop. The arrays are not kept alive: the loop does that.

    Attributes:
        arrays: for each argument the memory that modules use.
        spans: what :func:`optgen.runtime.memory.check_overlap` needs.
    """

    def __init__(
        self,
        leaves: Mapping[int, Leaf],
        spans: list[tuple[Leaf, str, bool]],
        owner: StepLeaves,
        params: Any,
        state: Any,
    ) -> None:
        self.arrays: dict[int, np.ndarray] = {}
        self._leaves = dict(leaves)
        self._owner = owner
        self._back: list[tuple[int, Leaf]] = []
        arguments = owner.manifest.arguments
        self._bound: dict[int, Binding] = {}
        self._types = {i: (arguments[i].dtype, arguments[i].shape) for i in leaves}
        direct = True
        for index, leaf in leaves.items():
            if memory.usable(leaf.array):
                self.arrays[index] = memory.alias(leaf.array)
                direct &= leaf.kind != "jax"
            else:
                self.arrays[index] = memory.aligned_copy(leaf.array, leaf.dtype)
                direct = False
                if arguments[index].role != "frozen":
                    self._back.append((index, leaf))
        self.spans = spans
        self._tensors = [
            leaf.owner for i, leaf in leaves.items() if leaf.kind == "torch" and arguments[i].role != "frozen"
        ]
        self._recalled: Recalled | None = None
        if direct:
            self._recalled = Recalled([params, state], [True, True], None)  # type: ignore[arg-type]
            # From here on weak references tell whether the arrays are still there.
            for leaf in leaves.values():
                leaf.address  # noqa: B018  asked for now, it is kept
                leaf.array, leaf.owner = memory.alias(leaf.array), None

    def matches(self, params: Any, state: Any) -> bool:
        """Whether these are the same arrays over the same memory."""
        if self._recalled is None:
            return False
        found = self._recalled.matches([params, self._owner._tensors(state)])
        if found is None:
            return False
        self._tensors = [found[i] for i in self._recalled.tensors]
        return True

    def bound(self, device: Device) -> dict[int, Binding]:
        """The arrays as modules take them. Where the device uses the arrays' own memory that is done once."""
        for index, array in self.arrays.items():
            known = self._bound.get(index)
            if known is None or known.staged:
                dtype, shape = self._types[index]
                self._bound[index] = device.bind_program(array, dtype, list(shape))
        return self._bound

    def wrote(self) -> None:
        """To be called when a step has written the arrays."""
        for index, leaf in self._back:
            leaf.array[...] = self.arrays[index]
        if self._tensors:
            memory.bump_versions(self._tensors)
            self._tensors = []


def _leaf(value: Any, argument: StepArgument, tree: str, written: bool, hint: str) -> Leaf:
    """``value`` as the leaf that ``argument`` describes, sharing its memory."""
    what = f"{tree} {show(argument.path)}" if argument.path else tree
    if isinstance(value, np.generic) and not written:
        value = np.asarray(value)
    kind, array = memory.array_of(value, argument.path, tree)
    try:
        dtype = element_name(value.dtype)
    except ValueError:
        dtype = str(value.dtype)
    if tuple(array.shape) != argument.shape:
        raise LeafError(f"{what} must have shape {argument.shape} (got {tuple(array.shape)}){hint}")
    if dtype != argument.dtype or not array.dtype.isnative:
        given = dtype if array.dtype.isnative else f"{dtype} of foreign byte order"
        raise LeafError(f"{what} must have dtype {argument.dtype} (got {given})")
    if dtype == "bf16":
        array = array.view(np.uint16)
    if written:
        if kind == "jax":
            raise LeafError(f"{what} must be an array that can be written (got JAX's): pass numpy.array(...) of it")
        if not array.flags.writeable:
            raise LeafError(f"{what} must be writable (it is read-only)")
        memory.check_own_memory(array, what)
    return Leaf(argument.path, array, dtype, kind, value)


def _key(rng: Any) -> np.ndarray:
    """A key of random numbers as its two words.

    Raises:
        LeafError: if it is neither a seed nor two words.
    """
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        if not 0 <= rng < 2**32:
            raise LeafError(f"'rng' must be a seed in [0, 2**32) (got {rng})")
        return np.array([0, rng], np.uint32)
    array = np.asarray(rng)
    if array.shape != (2,) or array.dtype != np.uint32:
        raise LeafError(f"'rng' must be a seed, or two words of uint32 (got {array.dtype} of shape {array.shape})")
    return np.ascontiguousarray(array).copy()
