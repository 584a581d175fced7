"""JAX's operations on float64: the usual ones by numpy, the others by JAX itself; each with what its rounding may do.

An operation of ``n`` terms errs by the square root of ``n`` roundings, of its terms and of its result. The functions of
which devices have approximations of their own are given several roundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from optgen.dsl.trace import import_jax
from optgen.probes.noise import Noise, floats

_SCATTERS = ("scatter", "scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max")

#: Operations that have a computation as a parameter, which is not what they do with all of their operands.
WITH_COMPUTATION = (
    *_SCATTERS, *(kind.replace("_", "-") for kind in _SCATTERS),
    "reduce", "reduce_window", "reduce_precision", "select_and_scatter", "custom_linear_solve",
)  # fmt: skip

#: Roundings by which functions may err, in the worst device's implementation.
_APPROXIMATE = 8.0
_DIVISION = 3.0

_Function = Callable[..., Any]

_EXACT: dict[str, _Function] = {
    "neg": np.negative, "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "max": np.maximum,
    "min": np.minimum, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "is_finite": np.isfinite,
}  # fmt: skip

_ROUNDED: dict[str, tuple[_Function, float]] = {
    "add": (np.add, 1.0), "add_any": (np.add, 1.0), "sub": (np.subtract, 1.0), "mul": (np.multiply, 1.0),
    "div": (np.divide, _DIVISION), "sqrt": (np.sqrt, _DIVISION), "rsqrt": (lambda x: 1 / np.sqrt(x), 4.0),
    "square": (np.square, 1.0), "exp": (np.exp, _APPROXIMATE), "exp2": (np.exp2, _APPROXIMATE),
    "log": (np.log, _APPROXIMATE), "log1p": (np.log1p, _APPROXIMATE), "expm1": (np.expm1, _APPROXIMATE),
    "tanh": (np.tanh, _APPROXIMATE), "sinh": (np.sinh, _APPROXIMATE), "cosh": (np.cosh, _APPROXIMATE),
    "sin": (np.sin, _APPROXIMATE), "cos": (np.cos, _APPROXIMATE), "tan": (np.tan, _APPROXIMATE),
    "logistic": (lambda x: 1 / (1 + np.exp(-x)), _APPROXIMATE), "cbrt": (np.cbrt, _APPROXIMATE),
}  # fmt: skip

#: Those that every device rounds once: what is exact stays so.
_ONCE = ("add", "add_any", "sub", "mul", "square")

#: Where most devices' approximations are exact, and a softmax of one number is: half of the runs are as well.
_EXACT_AT = {"exp": 0.0, "exp2": 0.0, "log": 1.0, "sqrt": 1.0, "rsqrt": 1.0}

#: What else JAX computes, with approximations of its devices' own.
_BY_JAX = (
    "erf", "erfc", "erf_inv", "lgamma", "digamma", "igamma", "igammac", "polygamma", "zeta", "bessel_i0e", "bessel_i1e",
    "regularized_incomplete_beta", "asin", "acos", "atan", "asinh", "acosh", "atanh", "atan2", "nextafter", "rem",
    "cumlogsumexp", "logsumexp", "cholesky", "triangular_solve", "eigh", "qr", "svd", "lu", "fft",
)  # fmt: skip


def evaluate(equation: Any, given: list[Any], noise: Noise) -> list[Any]:
    """The results of one operation that calls no other."""
    name = equation.primitive.name
    out = equation.outvars[0].aval
    dtype = floats(out.dtype)
    if name in _ROUNDED and dtype:
        function, scale = _ROUNDED[name]
        if dtype in ("f16", "bf16"):  # computed in f32 and rounded once
            scale = 1.0
        if name in ("sin", "cos"):  # whatever their result, devices err by parts of its range
            return [noise.rounded(function(*_sharpened(equation, given, noise)), dtype, scale)]
        found = function(*given)
        made = noise.rounded(found, dtype, scale, given if name in _ONCE else ())
        if name in _EXACT_AT and noise.keeps:
            np.copyto(made, found, where=given[0] == _EXACT_AT[name])
        return [made]
    if name in _EXACT and all(_plain(v) for v in equation.invars):
        result = _EXACT[name](*given)
        return [result if result.dtype == bool or dtype else result.astype(out.dtype)]
    if name in ("add", "sub", "mul", "add_any") and out.dtype != bool:
        return [_ROUNDED[name][0](*given).astype(out.dtype)]
    if handler := _HANDLERS.get(name):
        result = handler(equation, given, noise)
        return result if isinstance(result, list) else [result]
    found = by_jax(equation, given)
    if not dtype or name not in _BY_JAX:
        return found
    return [noise.rounded(r, dtype, _APPROXIMATE) if floats(v.aval.dtype) else r
            for r, v in zip(found, equation.outvars, strict=True)]  # fmt: skip


def _plain(var: Any) -> bool:
    return floats(var.aval.dtype) != "" or np.dtype(var.aval.dtype).kind in "iub"


def _sharpened(equation: Any, given: list[Any], noise: Noise) -> list[Any]:
    return [noise.moved(given[0], floats(equation.invars[0].aval.dtype))]


def stacked(rows: Sequence[Any]) -> Any:
    """Arrays on top of each other; also those that are not numpy's."""
    if isinstance(rows[0], np.ndarray | np.generic):
        return np.stack(rows)
    return import_jax().numpy.stack(rows)


def by_jax(equation: Any, given: list[Any], **changed: Any) -> list[Any]:
    """The operation by JAX, on float64 where it has floats; ``changed`` are parameters to put in place of its own."""
    jax = import_jax()
    avals = [v.aval for v in (*equation.invars, *equation.outvars)]
    wide = any(floats(a.dtype) or str(a.dtype) in ("int64", "uint64", "complex64", "complex128") for a in avals)
    params = dict(equation.params)
    for key in ("preferred_element_type", "new_dtype", "dtype"):
        if floats(params.get(key)):
            params[key] = np.dtype(np.float64)
    params.update(changed)
    with jax.enable_x64(True) if wide else nullcontext(), jax.default_device(jax.devices("cpu")[0]):
        if function := _LAX.get(equation.primitive.name):
            found = function(jax, params, given)
        else:
            prepared = equation.primitive.get_bind_params(params)
            functions, rest = prepared if isinstance(prepared, tuple) else ((), prepared)
            values = [v if not isinstance(v, np.ndarray | np.generic) else jax.numpy.asarray(v) for v in given]
            found = equation.primitive.bind(*functions, *values, **rest)
        found = list(found) if equation.primitive.multiple_results else [found]
        return [f if str(f.dtype).startswith("key<") else np.asarray(f) for f in found]


def _scatter(jax: Any, params: dict[str, Any], given: list[Any], kind: str) -> Any:
    function = getattr(jax.lax, kind)
    keys = ("indices_are_sorted", "unique_indices", "mode")
    operand, indices, updates = map(jax.numpy.asarray, given)
    if kind == "scatter" and params["update_jaxpr"] is not None:  # x.at[i].apply(f), whose updates are not read

        def applied(value: Any) -> Any:
            (found,) = jax.core.eval_jaxpr(params["update_jaxpr"], params["update_consts"], value, value)
            return found

        dimensions, others = params["dimension_numbers"], {k: params[k] for k in keys}
        return jax.lax.scatter_apply(operand, indices, applied, dimensions, update_shape=updates.shape, **others)
    return function(operand, indices, updates, params["dimension_numbers"], **{k: params[k] for k in keys})


def _window(jax: Any, params: dict[str, Any], given: list[Any], start: float, kind: str) -> Any:
    operand = jax.numpy.asarray(given[0])
    function = getattr(jax.lax, kind)
    return jax.lax.reduce_window(
        operand, np.array(start, operand.dtype), function, params["window_dimensions"], params["window_strides"],
        params["padding"], params["base_dilation"], params["window_dilation"],
    )  # fmt: skip


def _combined_window(jax: Any, params: dict[str, Any], given: list[Any]) -> Any:
    """A window's numbers combined by a computation of one's own."""
    operand, start = (jax.numpy.asarray(value) for value in given)  # of several operands there is no reference

    def combine(a: Any, b: Any) -> Any:
        (found,) = jax.core.eval_jaxpr(params["jaxpr"], params["consts"], a, b)
        return found

    return [
        jax.lax.reduce_window(
            operand, start, combine, params["window_dimensions"], params["window_strides"], params["padding"],
            params["base_dilation"], params["window_dilation"],
        )
    ]  # fmt: skip


def _scatters(kind: str) -> Callable[[Any, dict[str, Any], list[Any]], Any]:
    return lambda jax, params, given: _scatter(jax, params, given, kind)


#: Operations whose parameters hold a computation of f32; JAX makes it anew.
_LAX: dict[str, Callable[[Any, dict[str, Any], list[Any]], Any]] = {
    **{kind: _scatters(kind) for kind in _SCATTERS},
    **{kind.replace("_", "-"): _scatters(kind) for kind in _SCATTERS},
    "reduce_window": lambda jax, params, given: _combined_window(jax, params, given),
    "reduce_window_max": lambda jax, params, given: _window(jax, params, given, -np.inf, "max"),
    "reduce_window_min": lambda jax, params, given: _window(jax, params, given, np.inf, "min"),
}


# Operations that move numbers.


def _broadcast(equation: Any, given: list[Any], noise: Noise) -> Any:
    shape, dimensions = equation.params["shape"], equation.params["broadcast_dimensions"]
    if not isinstance(given[0], np.ndarray | np.generic):
        return by_jax(equation, given)
    sizes = [1] * len(shape)
    for extent, place in zip(np.shape(given[0]), dimensions, strict=True):
        sizes[place] = extent
    return np.broadcast_to(np.reshape(given[0], sizes), shape)


def _structural(function: Callable[[Any, Any], Any]) -> Callable[[Any, list[Any], Noise], Any]:
    def evaluate_it(equation: Any, given: list[Any], noise: Noise) -> Any:
        if all(isinstance(v, np.ndarray | np.generic) for v in given):
            return function(equation, given)
        return by_jax(equation, given)

    return evaluate_it


def _slice(equation: Any, given: list[Any]) -> Any:
    p = equation.params
    strides = p["strides"] or (1,) * given[0].ndim
    cuts = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return given[0][tuple(slice(a, b, s) for a, b, s in cuts)]


def _split(equation: Any, given: list[Any]) -> Any:
    return list(np.split(given[0], np.cumsum(equation.params["sizes"])[:-1], equation.params["axis"]))


def _dynamic_slice(equation: Any, given: list[Any]) -> Any:
    sizes = equation.params["slice_sizes"]
    operand = given[0]
    starts = [min(max(int(s), 0), n - k) for s, n, k in zip(given[1:], operand.shape, sizes, strict=True)]
    return operand[tuple(slice(s, s + k) for s, k in zip(starts, sizes, strict=True))]


def _dynamic_update_slice(equation: Any, given: list[Any]) -> Any:
    operand, update = given[0].copy(), given[1]
    starts = [min(max(int(s), 0), n - k) for s, n, k in zip(given[2:], operand.shape, update.shape, strict=True)]
    operand[tuple(slice(s, s + k) for s, k in zip(starts, update.shape, strict=True))] = update
    return operand


def _pad(equation: Any, given: list[Any]) -> Any:
    operand, value = given
    config = equation.params["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in config):
        return by_jax(equation, given)
    sizes = [n + max(n - 1, 0) * inner for n, (_, _, inner) in zip(operand.shape, config, strict=True)]
    shape = [n + low + high for n, (low, high, _) in zip(sizes, config, strict=True)]
    made = np.full(shape, value, operand.dtype)
    made[tuple(slice(c[0], c[0] + n, c[2] + 1) for n, c in zip(sizes, config, strict=True))] = operand
    return made


def _iota(equation: Any, given: list[Any]) -> Any:
    p = equation.params
    sizes = [1] * len(p["shape"])
    sizes[p["dimension"]] = p["shape"][p["dimension"]]
    dtype = np.float64 if floats(p["dtype"]) else p["dtype"]
    return np.broadcast_to(np.arange(sizes[p["dimension"]]).astype(dtype).reshape(sizes), p["shape"])


def _select(equation: Any, given: list[Any]) -> Any:
    which, *cases = given
    if len(cases) == 2 and which.dtype == bool:
        return np.where(which, cases[1], cases[0])
    return np.choose(np.broadcast_to(which, cases[0].shape).astype(np.int64), cases, mode="clip")


def _clamp(equation: Any, given: list[Any]) -> Any:
    low, value, high = given
    return np.minimum(np.maximum(value, low), high)


def _logical(function: _Function) -> Callable[[Any, Any], Any]:
    return lambda equation, given: function(*given).astype(equation.outvars[0].aval.dtype)


# Conversions.


def _convert(equation: Any, given: list[Any], noise: Noise) -> Any:
    if not isinstance(given[0], np.ndarray | np.generic):
        return by_jax(equation, given)
    value = np.asarray(given[0])
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    source, target = floats(before), floats(after)
    if target:
        if source:
            return (
                value
                if _SIZES[source] <= _SIZES[target] and source != target
                else noise.rounded(value, target, 1.0, [value])
            )
        wide = value.astype(np.float64)
        exact = np.dtype(before).itemsize < _SIZES[target] or np.abs(wide).max(initial=0) <= 1 / _EPSILON[target]
        return wide if exact else noise.rounded(wide, target)
    if source and np.dtype(after).kind in "iu":
        info = np.iinfo(after)
        if not (np.isfinite(value) & (value > float(info.min) - 1) & (value < float(info.max) + 1)).all():
            return by_jax(equation, [value.astype(np.float32)] if source == "f32" else given)
    return value.astype(after)


_SIZES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
_EPSILON = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53}


def _bitcast(equation: Any, given: list[Any], noise: Noise) -> Any:
    """Bits are those of the traced type."""
    jax = import_jax()
    source, target = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    wide = any(np.dtype(t).itemsize == 8 for t in (source, target))
    with jax.enable_x64(True) if wide else nullcontext():
        found = np.asarray(jax.lax.bitcast_convert_type(jax.numpy.asarray(np.asarray(given[0]).astype(source)), target))
    return found.astype(np.float64) if floats(target) else found


# Sums.


def _terms(equation: Any, values: np.ndarray, noise: Noise, count: int, which: int = 0) -> np.ndarray:
    return noise.moved(values, floats(equation.invars[which].aval.dtype), math.sqrt(max(count, 1)))


def _whole(values: np.ndarray, dtype: str) -> bool:
    """Whether all are integers of which no sum is rounded, in whatever order they are added."""
    if values.size == 0 or values.flat[0] != np.rint(values.flat[0]) or not np.array_equal(values, np.rint(values)):
        return False
    return float(np.abs(values).sum()) <= 1 / _EPSILON[dtype]


def _reduce_sum(equation: Any, given: list[Any], noise: Noise) -> Any:
    axes, out = tuple(equation.params["axes"]), equation.outvars[0].aval
    if not (dtype := floats(out.dtype)):
        return np.asarray(given[0].sum(axis=axes)).astype(out.dtype)
    count = math.prod(given[0].shape[a] for a in axes)
    if count == 1:
        return given[0].sum(axis=axes)
    if _whole(given[0], dtype):
        return given[0].sum(axis=axes)
    total = np.asarray(_terms(equation, given[0], noise, count).sum(axis=axes))
    return noise.rounded(total, dtype, math.sqrt(count))


def _cumulative(equation: Any, given: list[Any], noise: Noise) -> Any:
    (found,) = by_jax(equation, given)
    if not (dtype := floats(equation.outvars[0].aval.dtype)):
        return found
    if equation.primitive.name == "cumsum" and _whole(given[0], dtype):
        return found
    count = given[0].shape[equation.params["axis"]]
    moved = by_jax(equation, [_terms(equation, given[0], noise, count)])[0]
    return noise.rounded(moved, dtype, math.sqrt(count))


def _reduce(function: _Function) -> Callable[[Any, list[Any], Noise], Any]:
    def evaluate_it(equation: Any, given: list[Any], noise: Noise) -> Any:
        axes, out = tuple(equation.params["axes"]), equation.outvars[0].aval
        if 0 in given[0].shape:
            return by_jax(equation, given)
        found = np.asarray(function(given[0], axis=axes))
        return found if floats(out.dtype) else found.astype(out.dtype)

    return evaluate_it


def _reduce_prod(equation: Any, given: list[Any], noise: Noise) -> Any:
    axes, out = tuple(equation.params["axes"]), equation.outvars[0].aval
    if not (dtype := floats(out.dtype)):
        return np.asarray(given[0].prod(axis=axes)).astype(out.dtype)
    count = math.prod(given[0].shape[a] for a in axes)
    return noise.rounded(np.asarray(given[0].prod(axis=axes)), dtype, math.sqrt(max(count, 1)))


def _dot(equation: Any, given: list[Any], noise: Noise) -> Any:
    dtype = floats(equation.outvars[0].aval.dtype)
    if not dtype:
        return by_jax(equation, given)
    ((left_c, right_c), (left_b, right_b)) = equation.params["dimension_numbers"]
    left, right = given
    count = math.prod(left.shape[a] for a in left_c)
    if floats(equation.invars[0].aval.dtype):
        left = _terms(equation, left, noise, count)
    left_free = [a for a in range(left.ndim) if a not in (*left_c, *left_b)]
    right_free = [a for a in range(right.ndim) if a not in (*right_c, *right_b)]
    batch = [left.shape[a] for a in left_b]
    a = left.transpose(*left_b, *left_free, *left_c).reshape(*batch, -1, count)
    b = right.transpose(*right_b, *right_c, *right_free).reshape(*batch, count, -1)
    shape = (*batch, *(left.shape[i] for i in left_free), *(right.shape[i] for i in right_free))
    found = np.matmul(a.astype(np.float64), b.astype(np.float64)).reshape(shape)
    return noise.rounded(found, dtype, math.sqrt(max(count, 1)))


def _conv(equation: Any, given: list[Any], noise: Noise) -> Any:
    dtype = floats(equation.outvars[0].aval.dtype)
    if not dtype:
        return by_jax(equation, given)
    shape = given[1].shape
    count = math.prod(shape) // max(shape[equation.params["dimension_numbers"].rhs_spec[0]], 1)
    (found,) = by_jax(equation, [_terms(equation, given[0], noise, count), given[1]])
    return noise.rounded(found, dtype, math.sqrt(max(count, 1)))


def _summed_windows(equation: Any, given: list[Any], noise: Noise) -> Any:
    dtype = floats(equation.outvars[0].aval.dtype)
    if not dtype:
        return by_jax(equation, given)
    count = math.prod(equation.params["window_dimensions"])
    (found,) = by_jax(equation, [_terms(equation, given[0], noise, count), *given[1:]])
    return noise.rounded(found, dtype, math.sqrt(count))


def _scatter_sum(equation: Any, given: list[Any], noise: Noise) -> Any:
    dtype = floats(equation.outvars[0].aval.dtype)
    if not dtype:
        return by_jax(equation, given)
    operand, indices, updates = given
    count = min(math.prod(indices.shape[:-1]), 1024)
    (found,) = by_jax(equation, [operand, indices, _terms(equation, updates, noise, count, 2)])
    return noise.rounded(found, dtype, math.sqrt(max(count, 1)))


# Powers.


def _integer_pow(equation: Any, given: list[Any], noise: Noise) -> Any:
    power, out = equation.params["y"], equation.outvars[0].aval
    if not (dtype := floats(out.dtype)):
        return by_jax(equation, given)
    found = given[0] ** power if power >= 0 else 1 / given[0] ** -power
    return noise.rounded(found, dtype, abs(power) + (_DIVISION if power < 0 else 0))


def _pow(equation: Any, given: list[Any], noise: Noise) -> Any:
    out = equation.outvars[0].aval
    if not (dtype := floats(out.dtype)) or not floats(equation.invars[0].aval.dtype):
        return by_jax(equation, given)
    base, power = np.broadcast_arrays(given[0], np.asarray(given[1], np.float64))
    found = np.asarray(np.power(base, power))
    # Where it is the exponential of a product, that product's rounding counts.
    exponent = np.abs(power * np.log(np.abs(np.where(base == 0, 1.0, base))))
    largest = float(np.nan_to_num(exponent, nan=0.0, posinf=0.0).max(initial=0.0))
    return noise.rounded(found, dtype, _APPROXIMATE + min(largest, 1000.0))


def _round(equation: Any, given: list[Any]) -> Any:
    to_even = int(equation.params["rounding_method"]) == 1
    return np.rint(given[0]) if to_even else np.trunc(given[0] + np.copysign(0.5, given[0]))


_HANDLERS: dict[str, Callable[[Any, list[Any], Noise], Any]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _structural(
        lambda e, g: g[0].reshape(e.params["new_sizes"]) if e.params.get("dimensions") is None else by_jax(e, g)[0]
    ),
    "transpose": _structural(lambda e, g: np.transpose(g[0], e.params["permutation"])),
    "squeeze": _structural(lambda e, g: np.squeeze(g[0], e.params["dimensions"])),
    "expand_dims": _structural(lambda e, g: np.expand_dims(g[0], e.params["dimensions"])),
    "concatenate": _structural(lambda e, g: np.concatenate(g, e.params["dimension"])),
    "rev": _structural(lambda e, g: np.flip(g[0], e.params["dimensions"])),
    "slice": _structural(_slice),
    "split": _structural(_split),
    "dynamic_slice": _structural(_dynamic_slice),
    "dynamic_update_slice": _structural(_dynamic_update_slice),
    "pad": _structural(_pad),
    "iota": _structural(_iota),
    "select_n": _structural(_select),
    "clamp": _structural(_clamp),
    "copy": lambda e, g, n: g[0],
    "copy_p": lambda e, g, n: g[0],
    "stop_gradient": lambda e, g, n: g[0],
    "optimization_barrier": lambda e, g, n: list(g),
    "and": _structural(_logical(np.bitwise_and)),
    "or": _structural(_logical(np.bitwise_or)),
    "xor": _structural(_logical(np.bitwise_xor)),
    "not": _structural(_logical(np.bitwise_not)),
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
    "reduce_sum": _reduce_sum,
    "reduce_prod": _reduce_prod,
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_and": _reduce(np.bitwise_and.reduce),
    "reduce_or": _reduce(np.bitwise_or.reduce),
    "cumsum": _cumulative,
    "cumprod": _cumulative,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "reduce_window_sum": _summed_windows,
    "select_and_scatter_add": lambda e, g, n: _summed_sources(e, g, n),
    **dict.fromkeys(("scatter_add", "scatter-add", "scatter_sub", "scatter-sub"), _scatter_sum),
    "integer_pow": _integer_pow,
    "pow": _pow,
    "round": _structural(_round),
}


def _summed_sources(equation: Any, given: list[Any], noise: Noise) -> Any:
    dtype = floats(equation.outvars[0].aval.dtype)
    if not dtype:
        return by_jax(equation, given)
    count = math.prod(equation.params["window_dimensions"])
    (found,) = by_jax(equation, [_terms(equation, given[0], noise, count), given[1]])
    return noise.rounded(found, dtype, math.sqrt(count))
