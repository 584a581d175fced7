"""The Array: numpy memory that optgen's modules update in place, with the methods of the functional API."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from optgen.arrays.methods import UpdateMethods
from optgen.arrays.printing import format_array
from optgen.runtime.memory import kind_of


class Array(UpdateMethods):
    """A dense array on the CPU.

    It wraps a numpy array and shares its memory; :func:`optgen.array` and :func:`optgen.zeros` make one with memory of
    its own, aligned to 64 bytes. numpy, torch and JAX take it without a copy: ``np.asarray(x)``,
    ``torch.from_dlpack(x)``.

    Args:
        data: the memory.

    Attributes:
        data: the numpy array.

    Raises:
        TypeError: if ``data`` is no numpy array.

    Example:
        >>> Array(np.array([1.0, 2.0], np.float32)) * 2
        ivy.array([2., 4.])
    """

    __slots__ = ("__weakref__", "data")

    #: What the runtime recognises an Array by, without importing this module.
    __optgen_array__ = True

    # numpy arrays leave mixed arithmetic to this class, so that the result is an Array in either order.
    __array_priority__ = 1000

    data: np.ndarray

    def __init__(self, data: np.ndarray) -> None:
        if not isinstance(data, np.ndarray):
            raise TypeError(f"'data' must be a numpy array (got {type(data).__name__}): use optgen.array")
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type, as numpy has it."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    def to_numpy(self) -> np.ndarray:
        """The numpy array itself, not a copy."""
        return self.data

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers; one number if there are no axes."""
        return self.data.tolist()

    def item(self) -> Any:
        """The one element, as a Python number.

        Raises:
            ValueError: if there is not exactly one.
        """
        return self.data.item()

    def copy(self) -> Array:
        """An Array of the same values with aligned memory of its own."""
        from optgen.arrays.creation import array

        return array(self)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Array]:
        return (_wrap(row) for row in self.data)

    def __getitem__(self, index: Any) -> Array:
        """A view where numpy gives one, an Array in any case."""
        return _wrap(self.data[_plain(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.data[_plain(index)] = _plain(value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __float__(self) -> float:
        return float(self.data.item())

    def __int__(self) -> int:
        return int(self.data.item())

    def __bool__(self) -> bool:
        return bool(self.data)

    def __repr__(self) -> str:
        return format_array(self.data)

    # Arithmetic, elementwise, with numpy's broadcasting and promotion.

    def __add__(self, other: Any) -> Array:
        return self._binary(operator.add, other)

    def __radd__(self, other: Any) -> Array:
        return self._binary(operator.add, other, swapped=True)

    def __sub__(self, other: Any) -> Array:
        return self._binary(operator.sub, other)

    def __rsub__(self, other: Any) -> Array:
        return self._binary(operator.sub, other, swapped=True)

    def __mul__(self, other: Any) -> Array:
        return self._binary(operator.mul, other)

    def __rmul__(self, other: Any) -> Array:
        return self._binary(operator.mul, other, swapped=True)

    def __truediv__(self, other: Any) -> Array:
        return self._binary(operator.truediv, other)

    def __rtruediv__(self, other: Any) -> Array:
        return self._binary(operator.truediv, other, swapped=True)

    def __pow__(self, other: Any) -> Array:
        return self._binary(operator.pow, other)

    def __rpow__(self, other: Any) -> Array:
        return self._binary(operator.pow, other, swapped=True)

    def __neg__(self) -> Array:
        return _wrap(-self.data)

    def __eq__(self, other: object) -> Array:  # type: ignore[override]  # elementwise, as in numpy
        return self._binary(operator.eq, other)

    def __ne__(self, other: object) -> Array:  # type: ignore[override]
        return self._binary(operator.ne, other)

    __hash__ = None  # type: ignore[assignment]  # nothing whose == is elementwise can be a key

    def _binary(self, function: Callable[[Any, Any], Any], other: Any, *, swapped: bool = False) -> Array:
        if isinstance(other, dict | str):
            refused: Array = NotImplemented
            return refused
        value = np.asarray(other) if kind_of(other) == "torch" else _plain(other)
        return _wrap(function(value, self.data) if swapped else function(self.data, value))


def _plain(value: Any) -> Any:
    """``value`` for numpy: the memory of an Array."""
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return value.data if isinstance(value, Array) else value


def _wrap(value: Any) -> Array:
    return Array(np.asarray(value))  # numpy makes scalars of results without axes
