"""optax: from a ``GradientTransformation`` and a tree of params to one traced update of the whole tree.

Nothing here imports optax: a transformation is whatever has the two functions ``init`` and ``update``.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from optgen.artifact.transform import TensorInfo as Tensor
from optgen.dsl.trace import import_jax
from optgen.dtypes import element_name, numpy_dtype
from optgen.errors import LeafError, RuleError
from optgen.lower.repair import stablehlo_of
from optgen.lower.repair.arguments import NARROWED, taking_wide
from optgen.runtime.tree import leaves_of, map_tree, mapping_like, sequence_like, show, walk

#: A state whose dtypes have not settled after so many traces never will.
_SETTLE = 4


@dataclass(frozen=True)
class Initial:
    """What a leaf of the state is before the first step: one of the four.

    Attributes:
        fill: this number everywhere.
        array: these numbers, whatever the params.
        copy: the path of the param whose copy it is.
        computed: the position, among the results of ``TracedUpdate.init``, of what is computed from the params.
    """

    fill: float | None = None
    array: np.ndarray | None = None
    copy: str | None = None
    computed: int | None = None


@dataclass(frozen=True)
class TracedUpdate:
    """One update of a whole tree, traced.

    Attributes:
        name: what to call it.
        stablehlo: its ``main`` takes the ``arguments`` and returns the ``results``.
        arguments: params, grads, state, extra arguments.
        results: positions, among the arguments, of what each result replaces.
        initial: for each leaf of the state, what it begins as.
        init: StableHLO that takes the params and gives what of the state must be computed from them; or None.
        jaxpr, init_jaxpr: the same two functions as JAX has them, for :mod:`optgen.probes`.
    """

    name: str
    stablehlo: str
    arguments: tuple[Tensor, ...]
    results: tuple[int, ...]
    initial: tuple[Initial, ...]
    init: str | None
    jaxpr: Any = field(default=None, repr=False, compare=False)
    init_jaxpr: Any = field(default=None, repr=False, compare=False)


class Transformation(Protocol):
    """What optax calls a ``GradientTransformation``."""

    @property
    def init(self) -> Callable[..., Any]:
        """From params to state."""

    @property
    def update(self) -> Callable[..., Any]:
        """From grads, state and params to updates and state."""


def is_transformation(value: Any) -> bool:
    """Whether ``value`` is a ``GradientTransformation``: it has the functions ``init`` and ``update``."""
    return not isinstance(value, type) and all(callable(getattr(value, n, None)) for n in ("init", "update"))


def trace_transformation(
    transformation: Any,
    like: Any,
    *,
    name: str | None = None,
    grad_dtype: Any = None,
    grads_like: Any = None,
    extra_args: Mapping[str, Any] | None = None,
) -> TracedUpdate:
    """Traces ``apply_updates(params, update(grads, state, params))`` for the layout of ``like``.

    Args:
        transformation: what has ``init`` and ``update``.
        like: the params, or whatever has their structure, shapes and dtypes.
        name: what to call it; by default the name of the function that made it.
        grad_dtype: of the grads; by default that of each param.
        grads_like: the grads' structure, shapes and dtypes where they are not those of the params, as for lookahead.
        extra_args: further arguments of ``update``, each with an example: a number, or a tree of arrays.

    Raises:
        LeafError: if ``like`` has a leaf that is no array, or of a dtype that modules do not know.
        RuleError: if JAX cannot trace it, or its state never settles to fixed shapes and dtypes.
    """
    jax = import_jax()
    label = name or _name_of(transformation)
    like = _plain(jax, like)
    params = [_tensor("params", path, value) for path, value in leaves_of(like).items()]
    if not params:
        raise LeafError("'like' must have at least one array")
    grads_like = like if grads_like is None else _plain(jax, grads_like)
    grads = [_tensor("grads", path, value) for path, value in leaves_of(grads_like).items()]
    if grad_dtype is not None:
        grads = [dataclasses.replace(t, dtype=element_name(grad_dtype)) for t in grads]
    extras = {key: _plain(jax, value) for key, value in (extra_args or {}).items()}
    extra = [_tensor(key, path, value) for key, tree in extras.items() for path, value in leaves_of(tree).items()]
    # 64-bit integers among the extra arguments are what JAX makes of them; those of params are there to stay.
    wide = any(t.dtype == "f64" for t in extra) or any(t.dtype in ("f64", "i64", "ui64") for t in (*params, *grads))
    with jax.enable_x64(True) if wide else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracer = _Tracer(jax, transformation, label, like, grads_like, extras, params, grads, extra)
        return tracer.run()


class _Tracer:
    """The state of one trace."""

    def __init__(
        self,
        jax: Any,
        transformation: Any,
        label: str,
        like: Any,
        grads_like: Any,
        extras: Mapping[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        extra: list[Tensor],
    ) -> None:
        self.jax, self.transformation, self.label = jax, transformation, label
        self.like, self.grads_like, self.extras = like, grads_like, extras
        self.params, self.grads, self.extra = params, grads, extra

    def run(self) -> TracedUpdate:
        jax = self.jax
        param_structs = [_struct(jax, t) for t in self.params]
        leaves = self.attempt("init", lambda: jax.eval_shape(lambda *p: self.init(*p)[0], *param_structs))
        for _ in range(_SETTLE):
            inputs = [*param_structs, *(_struct(jax, t) for t in self.grads), *leaves]
            inputs += [_struct(jax, self.narrowed(t)) for t in self.extra]
            traced = self.attempt("update", lambda given=inputs: jax.jit(self.update, keep_unused=True).trace(*given))
            after = list(traced.out_info)[len(self.params) :]
            if [a.shape for a in after] != [a.shape for a in leaves]:
                where = next(i for i, (a, b) in enumerate(zip(after, leaves, strict=True)) if a.shape != b.shape)
                raise RuleError(
                    f"'{self.label}' must keep the shapes of its state: {show(self.paths[where])} goes from "
                    f"{leaves[where].shape} to {after[where].shape}"
                )
            if [a.dtype for a in after] == [a.dtype for a in leaves]:
                break
            leaves = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in after]  # e.g. moments begun as bf16, kept as f32
        else:
            raise RuleError(f"'{self.label}' must keep the dtypes of its state, which change at every step")
        text: str = self.attempt("update", lambda: stablehlo_of(traced))
        first = len(inputs) - len(self.extra)
        narrow = (
            {}
            if jax.config.jax_enable_x64
            else {first + i: t.dtype for i, t in enumerate(self.extra) if t.dtype in NARROWED}
        )
        text = taking_wide(text, narrow)
        state = [
            Tensor("state", path, tuple(leaf.shape), _state_dtype(leaf.dtype, path, flag), keys)
            for path, leaf, keys, flag in zip(self.paths, leaves, self.keys, self.bools, strict=True)
        ]
        arguments = (*self.params, *self.grads, *state, *self.extra)
        first = len(self.params) + len(self.grads)
        results = (*range(len(self.params)), *range(first, first + len(state)))
        initial, init, init_jaxpr = self.initial(param_structs, state)
        return TracedUpdate(self.label, text, arguments, results, initial, init, traced.jaxpr, init_jaxpr)

    def narrowed(self, tensor: Tensor) -> Tensor:
        """A tensor as JAX takes it where it is used now."""
        dtype = tensor.dtype if self.jax.config.jax_enable_x64 else NARROWED.get(tensor.dtype, tensor.dtype)
        return dataclasses.replace(tensor, dtype=dtype)

    def attempt(self, what: str, call: Any) -> Any:
        """``call()``, with whatever JAX says against it in one line."""
        try:
            return call()
        except RuleError:
            raise
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            if isinstance(error, TypeError) and "missing" in first and "argument" in first:
                raise RuleError(
                    f"'{self.label}' needs extra arguments in {what}, which must be given as extra_args: {first}"
                ) from error
            raise RuleError(f"'{self.label}' cannot be traced by JAX in {what}: {first}") from error

    # The functions that are traced: of flat leaves, with keys and truth values as modules pass them.

    def init(self, *params: Any) -> Any:
        state = self.transformation.init(self.tree(self.like, params))
        with_path, self.treedef = self.jax.tree_util.tree_flatten_with_path(state)
        self.keys = tuple(tuple(_key(k) for k in path) for path, _ in with_path)
        self.paths = tuple("/".join(map(str, keys)) for keys in self.keys)
        leaves = [self.jax.numpy.asarray(leaf) for _, leaf in with_path]
        self.key_types = [leaf.dtype if self.is_key(leaf) else None for leaf in leaves]
        self.bools = [leaf.dtype == bool for leaf in leaves]
        if len(set(self.paths)) != len(self.paths):
            twice = next(p for i, p in enumerate(self.paths) if p in self.paths[:i])
            raise RuleError(f"the state of '{self.label}' must have one leaf a path (two have {show(twice)})")
        return [self.passed(leaf) for leaf in leaves], None

    def update(self, *leaves: Any) -> list[Any]:
        n, m, k = len(self.params), len(self.params) + len(self.grads), len(self.paths)
        params, grads = self.tree(self.like, leaves[:n]), self.tree(self.grads_like, leaves[n:m])
        rest = iter(v != 0 if t.dtype == "i1" else v for v, t in zip(leaves[m + k :], self.extra, strict=True))
        extra = {name: map_tree(lambda *_: next(rest), tree) for name, tree in self.extras.items()}
        given = [self.typed(*each) for each in zip(leaves[m : m + k], self.key_types, self.bools, strict=True)]
        state = self.jax.tree_util.tree_unflatten(self.treedef, given)
        updates, state = self.transformation.update(grads, state, params, **extra)
        changes = dict(walk(updates))
        new_params = []
        for tensor, old in zip(self.params, leaves[:n], strict=True):
            change = changes.get(tensor.path)
            new_params.append(old if change is None else (old + change).astype(old.dtype))
        new, treedef = self.jax.tree_util.tree_flatten(state)
        if treedef != self.treedef:
            raise RuleError(f"'{self.label}' must keep the structure of its state (it changes in update)")
        return [*new_params, *(self.passed(self.jax.numpy.asarray(leaf)) for leaf in new)]

    def tree(self, like: Any, leaves: Sequence[Any]) -> Any:
        rest = iter(leaves)
        return map_tree(lambda *_: next(rest), like)

    def is_key(self, leaf: Any) -> bool:
        return bool(self.jax.numpy.issubdtype(leaf.dtype, self.jax.dtypes.prng_key))

    def passed(self, leaf: Any) -> Any:
        if self.is_key(leaf):
            return self.jax.random.key_data(leaf)
        return leaf.astype("int32") if leaf.dtype == bool else leaf

    def typed(self, leaf: Any, key_type: Any, boolean: bool) -> Any:
        if key_type is not None:
            return self.jax.random.wrap_key_data(leaf, impl=key_type._impl.name)
        return leaf != 0 if boolean else leaf

    # What the state is before the first step.

    def initial(self, params: Sequence[Any], state: Sequence[Tensor]) -> tuple[tuple[Initial, ...], str | None, Any]:
        jax = self.jax
        sources = _sources(jax.make_jaxpr(lambda *p: self.init(*p)[0])(*params).jaxpr, {})
        found: list[Initial] = []
        computed: list[int] = []
        fixed = [i for i, source in enumerate(sources) if source == "fixed"]
        zeros = [np.zeros(t.shape, t.dtype) for t in params] if fixed else []
        values = jax.jit(lambda *p: [self.init(*p)[0][i] for i in fixed])(*zeros) if fixed else []
        arrays = dict(zip(fixed, values, strict=True))
        for index, (tensor, source) in enumerate(zip(state, sources, strict=True)):
            if source == "fixed":
                found.append(Initial(array=np.asarray(arrays[index]).astype(numpy_dtype(tensor.dtype))))
            elif source == "computed":
                found.append(Initial(computed=len(computed)))
                computed.append(index)
            elif isinstance(source, _Fill):
                found.append(Initial(fill=float(source.number)))
            else:
                found.append(Initial(copy=self.params[source].path))
        if not computed:
            return tuple(found), None, None

        def rest(*leaves: Any) -> list[Any]:
            given = self.init(*leaves)[0]
            return [given[i].astype(_jax_name(state[i].passed)) for i in computed]

        traced = jax.jit(rest, keep_unused=True).trace(*params)
        return tuple(found), stablehlo_of(traced), traced.jaxpr


@dataclass(frozen=True)
class _Fill:
    """One number everywhere."""

    number: Any


#: Primitives that keep a value as it is; a param that goes through them alone is copied.
_COPIES = ("copy", "copy_p", "convert_element_type", "optimization_barrier")


def _sources(jaxpr: Any, given: Mapping[Any, Any]) -> list[Any]:
    """For each result of ``jaxpr``: a :class:`_Fill`; the number of the argument that it is a copy of; ``fixed`` if it
    depends on no argument; else ``computed``.

    Args:
        jaxpr: of a function.
        given: what its arguments are, where it is called by another; by default arguments of numbers 0, 1...
    """
    known: dict[Any, Any] = dict(given) or {var: index for index, var in enumerate(jaxpr.invars)}

    def of(var: Any) -> Any:
        if hasattr(var, "val"):  # a literal
            return _Fill(var.val) if np.ndim(var.val) == 0 else "fixed"
        return known.get(var, "fixed")

    for equation in jaxpr.eqns:
        inner, name = equation.params.get("jaxpr"), equation.primitive.name
        sources = [of(v) for v in equation.invars]
        if name in ("pjit", "jit") and inner is not None:
            results = _sources(inner.jaxpr, dict(zip(inner.jaxpr.invars, sources, strict=True)))
        elif name in _COPIES and not (isinstance(sources[0], _Fill) and name == "convert_element_type"):
            results = sources
        elif name == "convert_element_type":
            results = [_Fill(np.asarray(sources[0].number).astype(equation.outvars[0].aval.dtype).item())]
        elif name == "broadcast_in_dim" and isinstance(sources[0], _Fill):
            results = sources[:1]
        else:
            fixed = all(source == "fixed" or isinstance(source, _Fill) for source in sources)
            results = ["fixed" if fixed else "computed"] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [of(var) for var in jaxpr.outvars]


def _plain(jax: Any, tree: Any) -> Any:
    """``tree`` with dicts in place of mappings that JAX takes for leaves."""
    if isinstance(tree, Mapping):
        children = {key: _plain(jax, child) for key, child in tree.items()}
        if type(tree) is dict or jax.tree_util.all_leaves([tree]):
            return children
        return mapping_like(tree, children)
    if isinstance(tree, list | tuple):
        return sequence_like(tree, [_plain(jax, child) for child in tree])
    return tree


def _tensor(tree: str, path: str, value: Any) -> Tensor:
    if isinstance(value, bool | int | float):
        value = np.asarray(value, {bool: np.bool_, int: np.int32, float: np.float32}[type(value)])
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        raise LeafError(f"{tree} {show(path)} must be an array (got {type(value).__name__})")
    if 0 in shape:
        raise LeafError(f"{tree} {show(path)} must have at least one element (got shape {tuple(shape)})")
    try:
        return Tensor(tree, path, tuple(int(extent) for extent in shape), element_name(dtype))
    except ValueError as error:
        raise LeafError(f"{tree} {show(path)}: {error}") from None


def _jax_name(dtype: str) -> Any:
    import jax.numpy as jnp

    return jnp.bfloat16 if dtype == "bf16" else numpy_dtype(dtype)


def _struct(jax: Any, tensor: Tensor) -> Any:
    return jax.ShapeDtypeStruct(tensor.shape, _jax_name(tensor.passed))


def _state_dtype(dtype: Any, path: str, boolean: bool) -> str:
    try:
        return "i1" if boolean else element_name(dtype)
    except ValueError as error:
        raise LeafError(f"state {show(path)}: {error}") from None


def _key(entry: Any) -> str | int:
    """One step of a path of ``jax.tree_util``: a number in a sequence, else a name."""
    if hasattr(entry, "idx"):
        return int(entry.idx)
    for attribute in ("key", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _name_of(transformation: Any) -> str:
    """The function that made a transformation, as far as its ``update`` says so: ``chain``, ``scale_by_adam``."""
    function = transformation.update
    function = getattr(function, "func", function)
    name = str(getattr(function, "__qualname__", type(transformation).__name__))
    return name.split(".<locals>")[0].split(".")[0] or "transformation"
