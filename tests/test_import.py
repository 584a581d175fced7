"""What importing and using optgen pulls in."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("jax", "jaxlib", "torch", "optax", "iree.compiler", "jinja2", "sklearn", "matplotlib")


def modules_after(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after ``code``."""
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.mark.parametrize(
    "code",
    [
        "import optgen",
        "import optgen.rules, optgen.dsl, optgen.targets, optgen.artifact, optgen.runtime, optgen.arrays",
        "import optgen as ivy; ivy.adam_update(ivy.array([1.0]), ivy.array([1.0]), 0.1, ivy.zeros(1), ivy.zeros(1), 1)",
        "import optgen, numpy; o = optgen.prebuilt('adamw'); w = numpy.ones(3, 'f4');"
        "o.step(w, w.copy(), o.init(w), lr=0.1)",
        "import optgen; from optgen.runtime.verify import verify_bundle;"
        "verify_bundle(optgen.runtime.loading.prebuilt_bundle('sgd'), ['local-sync'])",
    ],
)
def test_no_compiler_no_framework(code: str) -> None:
    assert not [m for m in HEAVY if m in modules_after(code)]


def test_import_alone_is_nearly_nothing() -> None:
    """Not even numpy until something is used."""
    loaded = modules_after("import optgen")
    assert "iree.runtime" not in loaded
    assert "numpy" not in loaded
    assert "rich" not in loaded


def test_public_names() -> None:
    import optgen

    for name in optgen.__all__:
        assert getattr(optgen, name) is not None
    assert set(optgen.__all__) <= set(dir(optgen))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = optgen.nothing
