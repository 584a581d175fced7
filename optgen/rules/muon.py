"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, norm, rule, sqrt
from optgen.rules.common import decoupled, ema

#: Of Newton and Schulz' iteration, by which singular values go to about 1.
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ROUNDS = 5


@rule(
    state=("m",), decays=("beta",), convention="optax",
    source="Jordan et al., Muon: An Optimizer for Hidden Layers in Neural Networks (2024); optax.contrib.muon",
)  # fmt: skip
def muon(
    w: Any, g: Any, m: Any, *, lr: Any, step: Any, beta: Any = 0.95, eps: Any = 1e-8, weight_decay: Any = 0.0,
    plain_momentum: bool = False,
) -> Any:  # fmt: skip
    r"""Momentum whose singular values are all brought near 1. For matrices alone, and out of place.

    .. math::
        m' = \beta m + (1-\beta) g, \quad
        u = \frac{\beta m'}{1-\beta^{t+1}} + \frac{(1-\beta) g}{1-\beta^t}, \quad X_0 = \frac{u}{\|u\| + \epsilon}

        A = X_i X_i^T, \quad X_{i+1} = a X_i + (b A + c A^2) X_i, \quad
        w' = w - \eta\lambda w - \eta \sqrt{\max(1, n_{out}/n_{in})}\, X_5

    A leaf is :math:`n_{in} \times n_{out}`, as in JAX; torch's matrices are transposed to that. With
    ``plain_momentum`` :math:`u = m' / (1-\beta^t)`. Give leaves of other ranks to another rule, as optax gives them to
    Adam; compile with ``like=``.
    """
    m = ema(beta, m, g)
    if plain_momentum:
        u = m / (1 - beta**step)
    else:
        u = beta * m / (1 - beta ** (step + 1)) + (1 - beta) * g / (1 - beta**step)
    if len(w.shape) != 2:
        raise ValueError(f"muon is for matrices (got a leaf of shape {tuple(w.shape)})")
    rows, columns = w.shape
    x = u.T if rows > columns else u
    x = x / (norm(x) + eps)
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.T if rows > columns else x
    return decoupled(w, lr, weight_decay) - lr * sqrt(maximum(1.0, columns / rows)) * x, m
