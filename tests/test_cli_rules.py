"""``optgen rules``: every rule can be listed and shown, and its LaTeX read in a terminal."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from optgen.cli.app import app
from optgen.formula import formula, plain, summary
from optgen.rules import RULES


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["rules", *arguments], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_lists_every_rule_once() -> None:
    shown = run()
    names = [line.split()[0] for line in shown.splitlines()[2:] if line.strip() and not line.startswith(" ")]
    assert names == list(dict.fromkeys(name for name, _ in RULES))
    assert re.search(r"^adagrad +torch, optax, keras +s ", shown, re.MULTILINE)
    assert re.search(r"^sgd +torch, optax, keras +m \(with momentum\)", shown, re.MULTILINE)


def test_shows_one_in_full() -> None:
    shown = run("nadam")
    assert [f"nadam, in the convention of {c}" in shown for c in ("torch", "optax", "keras")] == [True] * 3
    assert "μ_t = β_1 (1 - ½ 0.96^(tψ))" in shown
    assert "mu_product (a number, first 1)" in shown
    assert "source: Dozat" in shown
    alone = run("adagrad", "--convention", "keras")
    assert "torch" not in alone
    assert "s (first initial_accumulator_value)" in alone
    assert re.search(r"^initial_accumulator_value +0.1 ", alone, re.MULTILINE)
    assert "adam, in the convention of torch and optax" in run("adam")


def test_json() -> None:
    data = {(rule["rule"], rule["conventions"][0]): rule for rule in json.loads(run("--json"))}
    assert data.keys() == RULES.keys()
    assert data["nadam", "torch"]["scalars"] == {"mu_product": 1.0}
    assert {"name": "z", "needs": None, "init": "param", "own_shape": False} in data["schedule_free_sgd", "optax"][
        "state"
    ]
    assert data["sophia_g", "optax"]["inputs"] == ["g", "h"]
    lr = next(h for h in data["rmsprop", "torch"]["hyperparameters"] if h["name"] == "momentum")
    assert lr["optional"]
    assert [rule["rule"] for rule in json.loads(run("lion", "--json"))] == ["lion", "lion"]


def test_unknown_names_are_refused() -> None:
    result = CliRunner().invoke(app, ["rules", "lion", "--convention", "numpy"])
    assert result.exit_code == 2
    assert "must be one of torch, optax, keras, ivy" in re.sub(r"\s+", " ", result.output)
    assert CliRunner().invoke(app, ["rules", "adamm"]).exit_code == 1


@pytest.mark.parametrize("key", RULES, ids=".".join)
def test_formulas_can_be_read(key: tuple[str, str]) -> None:
    """Each rule has a formula for the param, and none of its LaTeX is left."""
    rule = RULES[key]
    formulas = formula(rule)
    assert key[0] == "adam_step" or any("w'" in text for text in formulas)
    for text in (*formulas, summary(rule)):
        assert not re.search(r"[\\`]|\b(frac|sqrt|begin|end|left|right)\b", text), text
    assert rule.source


def test_plain() -> None:
    assert plain(r"w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{u'} + \epsilon}") == (
        "w' = w - η/(1-β_1^t) m'/(√u' + ε)"
    )
    assert plain(r"q = \begin{cases} a & x > 0\\ 1 & \text{else}\end{cases}, \quad w' = w") == (
        "q = {a if x > 0 | 1 else};  w' = w"
    )
