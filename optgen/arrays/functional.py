r"""The functional API: updates of arrays and trees, in ivy's signatures and arithmetic.

Common to all functions:

* **Kinds.** Tensors are numpy, torch, JAX or optgen arrays, Containers or dicts of them, or numbers and lists, which
  take the dtype that is needed. Each result is of the kind of what it replaces, and a tree if anything that it
  depends on is one; arguments that are no trees go to every leaf.
* **Shapes** broadcast as in numpy. New weights have the shape to which everything broadcasts, a new state that to
  which the grad and the old state do.
* **Dtypes.** Weights and grads are of one type, f32, f64, bf16 or f16; the state is f64 for f64 weights, else f32.
* **Memory.** Inputs are not changed and share no memory with results, unless ``out`` says so.
* **Derivatives.** With ``stop_gradients=False`` derivatives flow from the results to weights, grads, lr and state:
  for torch tensors that require grad through compiled modules (once), in functions that JAX transforms through JAX.
  With True they are zero.
* **Errors** come before anything is written: LeafError for an array of the wrong dtype or shape,
  HyperparameterError for a number that is NaN or out of range, TreeError for a missing key, OverlapError for
  results that would share memory.
"""

from __future__ import annotations

from typing import Any

from optgen.arrays.operation import ADAM, ADAM_STEP, GRADIENT_DESCENT, OPTIMIZER
from optgen.arrays.update import update


def adam_step(
    dcdw: Any, mw: Any, vw: Any, step: Any, /, *,
    beta1: Any = 0.9, beta2: Any = 0.999, epsilon: Any = 1e-7, out: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    r"""The effective grad of Adam, and its new state.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        \delta = \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t+\epsilon} \cdot \frac{m'}{\sqrt{v'} + \epsilon}

    Args:
        dcdw: the grads :math:`g`.
        mw: running average of the grads.
        vw: running average of their squares.
        step: the number :math:`t` of the step, a whole number of at least 0, or a tree of them.
        beta1: decay rate in [0, 1], or a tree of them.
        beta2: decay rate in [0, 1], or a tree of them.
        epsilon: at least 0, or a tree of such numbers.
        out: where to put the effective grad, or a tuple of where to put each result, or None.

    Returns:
        The effective grad, and the new ``mw`` and ``vw``. Derivatives flow through all of them.

    Raises:
        LeafError, HyperparameterError, TreeError, OverlapError: as the module says.

    Source: ivy 1.0, ``ivy.adam_step``; Kingma and Ba, Adam (2015).

    Example:
        >>> import optgen
        >>> optgen.adam_step(optgen.array([1.0, -2.0]), 0.0, 0.0, 1)[1]
        ivy.array([ 0.1, -0.2])
    """
    hypers = {"step": step, "beta1": beta1, "beta2": beta2, "eps": epsilon}
    effective_grad, m, v = update(ADAM_STEP, (dcdw, mw, vw), None, hypers, False, out)
    return effective_grad, m, v


def adam_update(
    w: Any, dcdw: Any, lr: Any, mw_tm1: Any, vw_tm1: Any, step: Any, /, *,
    beta1: Any = 0.9, beta2: Any = 0.999, epsilon: Any = 1e-7, stop_gradients: Any = True, out: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    r"""New weights by Adam, :math:`w' = w - \eta\delta` with the effective grad of :func:`adam_step`.

    Args:
        w: the weights.
        dcdw: the grads.
        lr: learning rate :math:`\eta`: a finite number, a tensor of one for each element, or a tree of these.
        mw_tm1: running average of the grads, from the step before.
        vw_tm1: running average of their squares, from the step before.
        step: the number of the step, a whole number of at least 0, or a tree of them.
        beta1: decay rate in [0, 1], or a tree of them.
        beta2: decay rate in [0, 1], or a tree of them.
        epsilon: at least 0, or a tree of such numbers.
        stop_gradients: whether the results are constants to whoever differentiates; a bool or a tree of them.
        out: where to put the new weights, or a tuple of where to put weights, ``mw`` and ``vw``, or None. It has the
            shape and dtype of the result and may be the very array that the result replaces.

    Returns:
        The new weights, ``mw`` and ``vw``; what was given as ``out`` itself.

    Raises:
        LeafError, HyperparameterError, TreeError, OverlapError: as the module says.

    Source: ivy 1.0, ``ivy.adam_update``; Kingma and Ba, Adam (2015).

    Example:
        >>> import optgen
        >>> optgen.adam_update(optgen.array([1.0, 2.0]), [0.5, 0.2], 0.1, [0.0, 0.0], [0.0, 0.0], 1)[0]
        ivy.array([0.90000075, 1.90000164])
    """
    hypers = {"step": step, "beta1": beta1, "beta2": beta2, "eps": epsilon}
    new_w, m, v = update(ADAM, (w, dcdw, mw_tm1, vw_tm1), lr, hypers, stop_gradients, out)
    return new_w, m, v


def gradient_descent_update(w: Any, dcdw: Any, lr: Any, /, *, stop_gradients: Any = True, out: Any = None) -> Any:
    r"""New weights by gradient descent, :math:`w' = w - \eta g`.

    Args:
        w: the weights.
        dcdw: the grads :math:`g`.
        lr: learning rate :math:`\eta`: a finite number, a tensor of one for each element, or a tree of these.
        stop_gradients: whether the result is a constant to whoever differentiates; a bool or a tree of them.
        out: where to put the new weights, or None. It has the shape and dtype of the result and may be ``w``.

    Returns:
        The new weights; ``out`` itself if that was given.

    Raises:
        LeafError, HyperparameterError, TreeError, OverlapError: as the module says.

    Source: ivy 1.0, ``ivy.gradient_descent_update``.

    Example:
        >>> import optgen
        >>> optgen.gradient_descent_update(optgen.array([1.0, 2.0]), [0.5, 1.0], 0.5)
        ivy.array([0.75, 1.5 ])
    """
    return update(GRADIENT_DESCENT, (w, dcdw), lr, {}, stop_gradients, out)[0]


def optimizer_update(w: Any, effective_grad: Any, lr: Any, /, *, stop_gradients: Any = True, out: Any = None) -> Any:
    r"""New weights by an effective grad, such as that of :func:`adam_step`: :math:`w' = w - \eta\delta`.

    Args:
        w: the weights.
        effective_grad: the grads :math:`\delta`, or what an optimizer has made of them.
        lr: learning rate :math:`\eta`: a finite number, a tensor of one for each element, or a tree of these.
        stop_gradients: whether the result is a constant to whoever differentiates; a bool or a tree of them.
        out: where to put the new weights, or None. It has the shape and dtype of the result and may be ``w``.

    Returns:
        The new weights; ``out`` itself if that was given.

    Raises:
        LeafError, HyperparameterError, TreeError, OverlapError: as the module says.

    Source: ivy 1.0, ``ivy.optimizer_update``.

    Example:
        >>> import optgen
        >>> optgen.optimizer_update(optgen.array([1.0, 2.0]), [0.5, 1.0], 0.5)
        ivy.array([0.75, 1.5 ])
    """
    return update(OPTIMIZER, (w, effective_grad), lr, {}, stop_gradients, out)[0]
