"""Every rule and convention, one line each: how to compile it, its float64 reference, and the library's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import reference
import rule_references as ref

import optgen

#: Exact in f32: Keras keeps the learning rate in its own float type.
LR = 2.0**-7

#: Makes a step of a library: ``(params, learning rate) -> (grads, lr, step, extra) -> params``.
Library = Callable[[Sequence[np.ndarray], float], Callable[..., Sequence[np.ndarray]]]


@dataclass(frozen=True)
class Case:
    """One rule to test.

    Attributes:
        rule, convention: its name.
        reference: its float64 numpy.
        library: the implementation that the convention is of; None where it is tested elsewhere.
        settings: structure and hyperparameters, for both.
        lr: of the convergence tests, on the quadratic and on Rosenbrock's function.
    """

    rule: str
    convention: str
    reference: Callable[..., dict[str, Any]]
    library: Library | None
    settings: dict[str, Any] = field(default_factory=dict)
    lr: tuple[float, float] = (0.1, 0.03)

    @property
    def id(self) -> str:
        words = [k if v is True else f"{k}={v}" for k, v in self.settings.items()]
        return "-".join([f"{self.rule}.{self.convention}", *words])

    @property
    def hypers(self) -> dict[str, float]:
        """The settings that are numbers."""
        return {k: v for k, v in self.settings.items() if not isinstance(v, bool)}

    def compile(self, *dtypes: str, **more: Any) -> optgen.Optimizer:
        return optgen.compile(self.rule, convention=self.convention, dtypes=dtypes, **self.settings, **more)


def torch(name: str, **settings: Any) -> Library:
    def make(params: Sequence[np.ndarray], lr: float) -> Any:
        import torch

        tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of NAdam's product, too
        optimizer = getattr(torch.optim, name)(tensors, lr=lr, **settings)

        def step(grads: Sequence[np.ndarray], lr: float, **_: Any) -> Sequence[np.ndarray]:
            torch.set_default_dtype(torch.float64)
            for tensor, grad in zip(tensors, grads, strict=True):
                tensor.grad = torch.tensor(grad)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            torch.set_default_dtype(before)
            return [t.detach().numpy() for t in tensors]

        torch.set_default_dtype(before)
        return step

    return make


def optax(name: str, *, injected: bool = True, **settings: Any) -> Library:
    def make(params: Sequence[np.ndarray], lr: float) -> Any:
        import jax
        import optax
        from optax import contrib

        factory = getattr(optax, name, None) or getattr(contrib, name)
        with jax.enable_x64(True):
            transformation = factory(lr, **settings)
            values = [jax.numpy.asarray(p) for p in params]
            state = transformation.init(values)

            @jax.jit
            def update(grads: Any, state: Any, values: Any, extra: Any) -> Any:
                updates, state = transformation.update(grads, state, values, **extra)
                return optax.apply_updates(values, updates), state

        def step(grads: Sequence[np.ndarray], lr: float, h: Any = None, **_: Any) -> Sequence[np.ndarray]:
            nonlocal values, state
            with jax.enable_x64(True):
                values, state = update(list(grads), state, values, {} if h is None else {"h": list(h)})
            return [np.asarray(v) for v in values]

        return step

    return make


def sophia(**settings: Any) -> Library:
    """optax's, with the estimates of the Hessian that it is given."""

    def make(params: Sequence[np.ndarray], lr: float) -> Any:
        import optax as library

        given = library.GradientTransformationExtraArgs(
            lambda params: library.EmptyState(), lambda grads, state, params=None, *, h, **_: (h, state)
        )
        return optax("sophia", hessian_diagonal_fn=given, update_interval=3, **settings)(params, lr)

    return make


def keras(name: str, **settings: Any) -> Library:
    def make(params: Sequence[np.ndarray], lr: float) -> Any:
        import os

        os.environ["KERAS_BACKEND"] = "jax"
        import jax
        import keras

        with jax.enable_x64(True):
            variables = [keras.Variable(p, dtype="float64") for p in params]
            optimizer = getattr(keras.optimizers, name)(lr, **settings)
            optimizer.build(variables)

        def step(grads: Sequence[np.ndarray], lr: float, **_: Any) -> Sequence[np.ndarray]:
            with jax.enable_x64(True):
                optimizer.learning_rate = lr
                optimizer.apply([jax.numpy.asarray(g) for g in grads])
                return [np.asarray(v.value) for v in variables]

        return step

    return make


def _plain(function: Any, **fixed: Any) -> Any:
    """A reference of ``reference.py``, without the largest terms."""
    return lambda *tensors, **hypers: {k: v[0] for k, v in function(*tensors, **hypers, **fixed).items()}


def _ivy(name: str) -> Any:
    """ivy's rules in numpy: epsilon-hat, and epsilon also in the denominator of the correction."""
    if name == "gradient_descent":
        return _plain(reference.sgd)
    return _plain(reference.adam, ivy=True, eps=1e-7)


C = Case
_WD = {"weight_decay": 0.1}
_BETAS = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-5}
_TORCH_BETAS: Any = {"betas": (0.8, 0.95), "eps": 1e-5}
_OPTAX_BETAS: Any = {"b1": 0.8, "b2": 0.95, "eps": 1e-5}
_KERAS_BETAS: Any = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-5}
_PENALTIES = {"l1": 0.05, "l2": 0.01, "l2_shrinkage": 0.02, "beta": 0.1}
_KERAS_PENALTIES: Any = {
    "l1_regularization_strength": 0.05, "l2_regularization_strength": 0.01, "beta": 0.1,
    "l2_shrinkage_regularization_strength": 0.02,
}  # fmt: skip

CASES: list[Case] = [
    C("sgd", "torch", _plain(reference.sgd), torch("SGD", **_WD), _WD, (0.1, 1e-3)),
    C("sgd", "torch", _plain(reference.sgd_momentum), torch("SGD", momentum=0.9, nesterov=True),
      {"momentum": 0.9, "nesterov": True}, (0.03, 5e-4)),
    C("sgd", "torch", ref.sgd_dampened, torch("SGD", momentum=0.9, dampening=0.4, **_WD),
      {"momentum": 0.9, "dampening": 0.4, **_WD}, (0.03, 1e-3)),
    C("sgd", "optax", _plain(reference.sgd_momentum), optax("sgd", momentum=0.8), {"momentum": 0.8}, (0.03, 5e-4)),
    C("sgd", "keras", ref.sgd_keras, keras("SGD", **_WD), _WD, (0.1, 1e-3)),
    C("sgd", "keras", ref.sgd_keras, keras("SGD", momentum=0.9), {"momentum": 0.9}, (0.03, 5e-4)),
    C("sgd", "keras", ref.sgd_keras, keras("SGD", momentum=0.9, nesterov=True), {"momentum": 0.9, "nesterov": True},
      (0.03, 5e-4)),
    C("adam", "torch", _plain(reference.adam), torch("Adam", **_TORCH_BETAS, **_WD), {**_BETAS, **_WD}),
    C("adam", "optax", _plain(reference.adam), optax("adam")),
    C("adam", "keras", ref.adam_keras, keras("Adam", **_KERAS_BETAS, **_WD), {**_BETAS, **_WD}),
    C("adam", "keras", ref.adam_keras, keras("Adam")),
    C("adam", "ivy", _ivy("adam"), None),
    C("adamw", "torch", _plain(reference.adamw), torch("AdamW")),
    C("adamw", "optax", ref.adamw_optax, optax("adamw")),
    C("adamw", "optax", ref.adamw_optax, optax("adamw", **_OPTAX_BETAS, **_WD), {**_BETAS, **_WD}),
    C("adamw", "keras", ref.adamw_keras, keras("AdamW")),
    C("amsgrad", "torch", ref.amsgrad, torch("Adam", amsgrad=True, **_TORCH_BETAS, **_WD), {**_BETAS, **_WD},
      (0.1, 0.3)),
    C("amsgrad", "torch", ref.amsgrad, torch("AdamW", amsgrad=True, **_WD), {"decoupled_weight_decay": True, **_WD},
      (0.1, 0.1)),
    C("amsgrad", "optax", ref.amsgrad_optax, optax("amsgrad"), {}, (0.1, 0.3)),
    C("amsgrad", "keras", ref.amsgrad_keras, keras("Adam", amsgrad=True, **_KERAS_BETAS), _BETAS, (0.1, 0.3)),
    C("adamax", "torch", ref.adamax, torch("Adamax", **_TORCH_BETAS, **_WD), {**_BETAS, **_WD}),
    C("adamax", "optax", ref.adamax, optax("adamax")),
    C("adamax", "keras", ref.adamax_keras, keras("Adamax", **_KERAS_BETAS, **_WD), {**_BETAS, **_WD}),
    C("adamaxw", "optax", ref.adamaxw, optax("adamaxw")),
    C("nadam", "torch", ref.nadam, torch("NAdam", **_WD), _WD),
    C("nadam", "optax", ref.nadam_optax, optax("nadam", **_OPTAX_BETAS), _BETAS),
    C("nadam", "keras", ref.nadam_keras, keras("Nadam")),
    C("nadamw", "torch", ref.nadamw, torch("NAdam", decoupled_weight_decay=True, **_TORCH_BETAS, **_WD),
      {**_BETAS, **_WD}),
    C("nadamw", "optax", ref.nadamw_optax, optax("nadamw")),
    C("radam", "torch", ref.radam, torch("RAdam", **_WD), _WD),
    C("radam", "torch", ref.radam, torch("RAdam", decoupled_weight_decay=True, **_TORCH_BETAS, **_WD),
      {"decoupled_weight_decay": True, **_BETAS, **_WD}),
    C("radam", "optax", ref.radam_optax, optax("radam", **_OPTAX_BETAS), _BETAS),
    C("adabelief", "optax", ref.adabelief, optax("adabelief")),
    C("adabelief", "optax", ref.adabelief, optax("adabelief", **_OPTAX_BETAS, eps_root=1e-6),
      {**_BETAS, "eps_root": 1e-6}),
    C("yogi", "optax", ref.yogi, optax("yogi")),
    C("adan", "optax", ref.adan, optax("adan", **_WD), _WD),
    C("ademamix", "optax", ref.ademamix, optax("ademamix", b3=0.99, **_WD), {"beta3": 0.99, **_WD}),
    C("adopt", "optax", ref.adopt, optax("adopt"), {}, (0.1, 0.3)),
    C("adopt", "optax", ref.adopt, optax("adopt", nesterov=True, use_clipping=False, b2=0.99),
      {"nesterov": True, "unclipped": True, "beta2": 0.99}),
    C("adadelta", "torch", ref.adadelta, torch("Adadelta", **_WD), _WD, (10, 3)),
    C("adadelta", "optax", ref.adadelta, optax("adadelta"), {}, (10, 3)),
    C("adadelta", "keras", ref.adadelta_keras, keras("Adadelta", **_WD), _WD, (30, 10)),
    C("adagrad", "torch", ref.adagrad, torch("Adagrad", lr_decay=0.002, initial_accumulator_value=0.2, **_WD),
      {"lr_decay": 0.002, "initial_accumulator_value": 0.2, **_WD}, (0.5, 1.0)),
    C("adagrad", "optax", ref.adagrad_inside, optax("adagrad"), {}, (0.5, 1.0)),
    C("adagrad", "keras", ref.adagrad_inside, keras("Adagrad", initial_accumulator_value=0.3, **_WD),
      {"initial_accumulator_value": 0.3, **_WD}, (0.5, 1.0)),
    C("rmsprop", "torch", ref.rmsprop, torch("RMSprop", **_WD), _WD),
    C("rmsprop", "torch", ref.rmsprop, torch("RMSprop", centered=True, momentum=0.9),
      {"centered": True, "momentum": 0.9}, (0.01, 0.003)),
    C("rmsprop", "optax", ref.rmsprop_inside, optax("rmsprop", initial_scale=0.5), {"initial_scale": 0.5}),
    C("rmsprop", "optax", ref.rmsprop_inside, optax("rmsprop", centered=True, momentum=0.9, nesterov=True),
      {"centered": True, "momentum": 0.9, "nesterov": True}, (0.01, 0.003)),
    C("rmsprop", "keras", ref.rmsprop_keras, keras("RMSprop", momentum=0.8, centered=True, **_WD),
      {"momentum": 0.8, "centered": True, **_WD}, (0.01, 0.003)),
    C("rprop", "torch", ref.rprop, torch("Rprop")),
    C("rprop", "optax", ref.rprop_optax, optax("rprop")),
    C("lion", "optax", ref.lion, optax("lion"), {}, (0.05, 0.01)),
    C("lion", "keras", ref.lion_keras, keras("Lion", **_WD), _WD, (0.05, 0.01)),
    C("signsgd", "optax", ref.signsgd, optax("sign_sgd"), {}, (0.05, 0.01)),
    C("signum", "optax", ref.signum, optax("signum"), {}, (0.05, 0.01)),
    C("lars", "optax", ref.lars, optax("lars", weight_decay=0.1), _WD, (1.0, 1.0)),
    C("lars", "optax", ref.lars, optax("lars", eps=1e-3, trust_coefficient=0.1, nesterov=True),
      {"eps": 1e-3, "trust_coefficient": 0.1, "nesterov": True}, (0.05, 0.02)),
    C("lamb", "optax", ref.lamb, optax("lamb", weight_decay=0.1), _WD, (0.05, 0.03)),
    C("lamb", "keras", ref.lamb_keras, keras("Lamb", weight_decay=0.1), _WD, (0.05, 0.03)),
    C("novograd", "optax", ref.novograd, optax("novograd", weight_decay=0.01), {"weight_decay": 0.01}, (0.05, 0.01)),
    C("schedule_free_sgd", "optax", ref.schedule_free_sgd, optax("schedule_free_sgd", **_WD), _WD, (0.1, 2e-3)),
    C("schedule_free_adamw", "optax", ref.schedule_free_adamw, optax("schedule_free_adamw", **_WD), _WD),
    C("schedule_free_adamw", "keras", ref.schedule_free_adamw_keras, keras("ScheduleFreeAdamW", **_WD), _WD),
    C("sophia_g", "optax", ref.sophia_g, sophia(), {}, (0.1, 0.03)),
    C("ftrl", "keras", ref.ftrl, keras("Ftrl"), {}, (0.3, 0.3)),
    C("ftrl", "keras", ref.ftrl, keras("Ftrl", **_KERAS_PENALTIES), _PENALTIES, (0.3, 0.3)),
    C("ftrl", "keras", ref.ftrl, keras("Ftrl", learning_rate_power=-0.75), {"power": 0.75}, (1.0, 3.0)),
    C("gradient_descent", "ivy", _ivy("gradient_descent"), None, {}, (0.1, 1e-3)),
]  # fmt: skip

_ADAFACTOR = {"decay_rate": 0.7, "clip_threshold": 1.25, "min_scale": 1e-2, **_WD}
#: Those that run out of place, for leaves of known shapes.
UNTIED: list[Case] = [
    C("adafactor", "torch", ref.adafactor_torch, torch("Adafactor")),
    C("adafactor", "torch", ref.adafactor_torch, torch("Adafactor", beta2_decay=-0.7, d=1.25, eps=(1e-3, 1e-2), **_WD),
      {**_ADAFACTOR, "eps": 1e-3}),
    C("adafactor", "optax", ref.adafactor, optax("adafactor")),
    C("adafactor", "optax", ref.adafactor, optax("adafactor", min_dim_size_to_factor=0, weight_decay_rate=1e-3),
      {"any_size": True, "weight_decay": 1e-3}),
    C("adafactor", "optax", ref.adafactor, optax("adafactor", momentum=0.9, decay_rate=0.7, eps=1e-6,
                                                 clipping_threshold=0.5, min_dim_size_to_factor=0),
      {"any_size": True, "momentum": 0.9, "decay_rate": 0.7, "eps": 1e-6, "clip_threshold": 0.5}),
    C("adafactor", "optax", ref.adafactor, optax("adafactor", factored=False, multiply_by_parameter_scale=False),
      {"factored": False, "scale_by_param": False}),
]  # fmt: skip


@cache
def compiled(index: int) -> optgen.Optimizer:
    """The optimizer of a case, for f32 and f64 params; compiled once in a process."""
    return CASES[index].compile("f32", "f64", target="cpu")
