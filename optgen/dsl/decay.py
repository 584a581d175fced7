"""Decay rates inside a rule: ordinary arithmetic in which ``1 - beta`` and ``1 - beta**step`` are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class _Number:
    """Comparisons and conversions of a decay rate or power: those of the number that it stands for."""

    __array_priority__ = 1000  # numpy and JAX values leave the operator to this class
    __hash__ = None  # type: ignore[assignment]

    if TYPE_CHECKING:

        def __jax_array__(self) -> Any: ...

    def __eq__(self, other: object) -> Any:
        return self.__jax_array__() == plain(other)

    def __ne__(self, other: object) -> Any:
        return self.__jax_array__() != plain(other)

    def __lt__(self, other: Any) -> Any:
        return self.__jax_array__() < plain(other)

    def __le__(self, other: Any) -> Any:
        return self.__jax_array__() <= plain(other)

    def __gt__(self, other: Any) -> Any:
        return self.__jax_array__() > plain(other)

    def __ge__(self, other: Any) -> Any:
        return self.__jax_array__() >= plain(other)

    def __abs__(self) -> Any:
        return abs(self.__jax_array__())

    def __bool__(self) -> bool:
        return bool(self.__jax_array__())

    def __float__(self) -> float:
        return float(self.__jax_array__())

    def __int__(self) -> int:
        return int(self.__jax_array__())

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__jax_array__().__array__(*args, **kwargs)


class Decay(_Number):
    """A decay rate ``beta`` while a rule is traced.

    It multiplies and adds like the number that it stands for, except that ``1 - beta`` is the complement that was
    rounded once from float64, and ``1 - beta**step`` is ``-expm1(step * log(beta))``.
    """

    def __init__(self, value: Any, complement: Any, log: Any) -> None:
        self.value = value
        self.complement = complement
        self.log = log

    def __jax_array__(self) -> Any:
        return self.value

    def __pow__(self, exponent: Any) -> DecayPower:
        return DecayPower(exponent * self.log)

    def __rsub__(self, other: Any) -> Any:
        return self.complement if _is_one(other) else other - self.value

    def __sub__(self, other: Any) -> Any:
        return -self.complement if _is_one(other) else self.value - plain(other)

    def __mul__(self, other: Any) -> Any:
        return self.value * plain(other)

    def __rmul__(self, other: Any) -> Any:
        return other * self.value

    def __add__(self, other: Any) -> Any:
        return self.value + plain(other)

    def __radd__(self, other: Any) -> Any:
        return other + self.value

    def __truediv__(self, other: Any) -> Any:
        return self.value / plain(other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.value

    def __neg__(self) -> Any:
        return -self.value


class DecayPower(_Number):
    """``beta**t``, kept as ``t * log(beta)`` until it is known whether ``1 - beta**t`` is what is wanted."""

    def __init__(self, exponent: Any) -> None:
        self.exponent = exponent

    def __jax_array__(self) -> Any:
        import jax.numpy as jnp

        return jnp.exp(self.exponent)

    def __rsub__(self, other: Any) -> Any:
        import jax.numpy as jnp

        return -jnp.expm1(self.exponent) if _is_one(other) else other - self.__jax_array__()

    def __sub__(self, other: Any) -> Any:
        import jax.numpy as jnp

        return jnp.expm1(self.exponent) if _is_one(other) else self.__jax_array__() - plain(other)

    def __mul__(self, other: Any) -> Any:
        return self.__jax_array__() * plain(other)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        return self.__jax_array__() + plain(other)

    __radd__ = __add__

    def __truediv__(self, other: Any) -> Any:
        return self.__jax_array__() / plain(other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.__jax_array__()

    def __neg__(self) -> Any:
        return -self.__jax_array__()


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and value == 1


def plain(value: Any) -> Any:
    """The number itself, where ``value`` is a decay rate or a power of one."""
    return value.__jax_array__() if isinstance(value, Decay | DecayPower) else value
