"""What the page of ``examples/web`` trains with: its step and its network, compiled to WebAssembly, and digits.

``python -m optgen.train.web examples/web`` writes them, as scripts that a page opened from a folder can load.
"""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optgen._version import __version__
from optgen.compiler.driver import compiler_version
from optgen.train import recipe
from optgen.train.digits import load_data

#: How many images the compiled network looks at in one call.
IMAGES = 60
TARGET = "wasm"
# With a slower average of squares, a network that makes no mistakes any more would learn what is new to it by leaps:
# its grads are thousands of times as large as those before.
_HYPERS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01}
_NAMES = tuple(f"layer{i}.{leaf}" for i in range(len(recipe.LAYERS) - 1) for leaf in ("w", "b"))
#: The names of params and moments, which the step takes first and returns first.
STATE = tuple(f"{tree}.{leaf}" for tree in ("params", "m", "v") for leaf in _NAMES)
_DATA = """\
// Written by `python -m optgen.train.web`. Handwritten digits, 8 x 8 pixels of 0 to 16 (a to q), one on each line: its
// class, then its rows. {count} to train with come first, then those to test with, as optgen's demo splits them.
//
// Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository,
// https://doi.org/10.24432/C50P49, its test set as scikit-learn has it. Licence: CC BY 4.0.
"use strict";
const TRAINING_DIGITS = {count};
const DIGITS = `
{lines}
`;
"""


def make_files(*, use_cache: bool = True) -> dict[str, str]:
    """The generated files by name: ``train.js``, ``predict.js``, ``data.js``, each a script of its own."""
    from optgen.native import get_native_target, step_package

    target = get_native_target(TARGET)
    train = step_package(
        lowered_step(), target, name="train", arguments=[*STATE, "x", "y", "lr", "step"], results=[*STATE, "loss"],
        title="a training step of an MLP with AdamW", use_cache=use_cache,
    )  # fmt: skip
    predict = step_package(
        _lowered_predict(), target, name="predict", arguments=[*STATE[: len(_NAMES)], "x"], results=["logits"],
        title="the logits of an MLP", use_cache=use_cache,
    )  # fmt: skip
    return {"train.js": train.script, "predict.js": predict.script, "data.js": _data()}


def _trees(leaves: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    rest = iter(leaves)
    return {f"layer{i}": {"w": next(rest), "b": next(rest)} for i in range(len(recipe.LAYERS) - 1)}


def _shapes() -> list[Any]:
    import jax

    params = recipe.init_params()
    return [
        jax.ShapeDtypeStruct(params[layer][leaf].shape, "float32")
        for layer, leaf in (name.split(".") for name in _NAMES)
    ]


def train_step(*arguments: Any) -> list[Any]:
    """Loss and grads, then optgen's AdamW on every leaf.

    Args:
        arguments: what :data:`STATE` names, images, their classes, the learning rate, the number of the step.

    Returns:
        What :data:`STATE` names, and the loss.
    """
    import jax

    from optgen.dsl.decay import Decay
    from optgen.rules import get_rule
    from optgen.train.mlp import loss_and_grad

    rule, count = get_rule("adamw"), len(_NAMES)
    decays = {h.name for h in rule.hypers if h.kind == "decay"}
    hypers = {n: Decay(b, 1 - b, math.log(b)) if n in decays else b for n, b in _HYPERS.items()}
    params, m, v = (arguments[i * count : (i + 1) * count] for i in range(3))
    x, y, lr, number = arguments[3 * count :]
    loss, grads = loss_and_grad(_trees(params), x, y)
    # The old params must have been read when the new ones take their place: aliasing is not checked.
    loss, grads = jax.lax.optimization_barrier((loss, [grads[n][k] for n, k in (s.split(".") for s in _NAMES)]))
    new = [rule(w, g, a, b, lr=lr, step=number, **hypers) for w, g, a, b in zip(params, grads, m, v, strict=True)]
    return [each[i] for i in range(3) for each in new] + [loss]


def lowered_step() -> str:
    """:func:`train_step` as StableHLO, its state donated."""
    import jax

    images = jax.ShapeDtypeStruct((recipe.BATCH, recipe.LAYERS[0]), "float32")
    classes, number = jax.ShapeDtypeStruct((recipe.BATCH,), "int32"), jax.ShapeDtypeStruct((), "float32")
    jitted = jax.jit(train_step, donate_argnums=tuple(range(len(STATE))), keep_unused=True)
    text: str = jitted.lower(*_shapes() * 3, images, classes, number, number).as_text()
    return text


def _lowered_predict() -> str:
    import jax

    from optgen.train.mlp import predict

    def logits(*arguments: Any) -> Any:
        return predict(_trees(arguments[:-1]), arguments[-1])

    images = jax.ShapeDtypeStruct((IMAGES, recipe.LAYERS[0]), "float32")
    text: str = jax.jit(logits, keep_unused=True).lower(*_shapes(), images).as_text()
    return text


def _data() -> str:
    train_x, train_y, test_x, test_y = load_data()
    lines = []
    for images, classes in ((train_x, train_y), (test_x, test_y)):
        for image, label in zip(images, classes, strict=True):
            lines.append(f"{label}{''.join(chr(ord('a') + round(float(p) * 16)) for p in image)}")
    return _DATA.format(count=recipe.TRAIN, lines="\n".join(lines))


def main(folder: str | Path) -> None:
    """Writes the files into ``folder``."""
    for name, text in make_files().items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
        print(f"{name} {len(text.encode())} bytes")
    versions = {"optgen": __version__, "iree-base-compiler": compiler_version(), "jax": version("jax")}
    (Path(folder) / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "examples/web")
