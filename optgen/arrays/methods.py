"""The functional API as methods, shared by Array and Container."""

from __future__ import annotations

from typing import Any


class UpdateMethods:
    """Each method is the function of the same name with ``self`` as its first argument."""

    __slots__ = ()

    def adam_step(
        self, mw: Any, vw: Any, step: Any, /, *,
        beta1: Any = 0.9, beta2: Any = 0.999, epsilon: Any = 1e-7, out: Any = None,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """The effective grad of Adam; see :func:`optgen.adam_step`. ``self`` is the grad."""
        from optgen.arrays import functional

        return functional.adam_step(self, mw, vw, step, beta1=beta1, beta2=beta2, epsilon=epsilon, out=out)

    def adam_update(
        self, dcdw: Any, lr: Any, mw_tm1: Any, vw_tm1: Any, step: Any, /, *,
        beta1: Any = 0.9, beta2: Any = 0.999, epsilon: Any = 1e-7, stop_gradients: Any = True, out: Any = None,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """An update by Adam; see :func:`optgen.adam_update`. ``self`` are the weights."""
        from optgen.arrays import functional

        return functional.adam_update(
            self, dcdw, lr, mw_tm1, vw_tm1, step,
            beta1=beta1, beta2=beta2, epsilon=epsilon, stop_gradients=stop_gradients, out=out,
        )  # fmt: skip

    def optimizer_update(self, effective_grad: Any, lr: Any, /, *, stop_gradients: Any = True, out: Any = None) -> Any:
        """An update by an effective grad; see :func:`optgen.optimizer_update`. ``self`` are the weights."""
        from optgen.arrays import functional

        return functional.optimizer_update(self, effective_grad, lr, stop_gradients=stop_gradients, out=out)

    def gradient_descent_update(self, dcdw: Any, lr: Any, /, *, stop_gradients: Any = True, out: Any = None) -> Any:
        """An update by gradient descent; see :func:`optgen.gradient_descent_update`. ``self`` are the weights."""
        from optgen.arrays import functional

        return functional.gradient_descent_update(self, dcdw, lr, stop_gradients=stop_gradients, out=out)
