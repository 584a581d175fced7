"""Bundles: atomic, verified, versioned, reproducible."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optgen
from optgen import resources
from optgen.artifact import FORMAT, Bundle, Manifest, read_bundle, storage, write_bundle
from optgen.compiler.prebuilt import Recipe, recipes
from optgen.errors import BundleError, BundleNotFoundError, BundleVersionError
from optgen.runtime.loading import prebuilt_bundle, prebuilt_names

RECIPES = list(recipes())


def _differ(new: Bundle, old: Bundle) -> list[str]:
    return [f for f in new.files if new.files[f] != old.files.get(f)]


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.variant.name == "sgd"], ids=lambda r: r.variant.name)
def test_a_rebuild_gives_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    """What is in artifacts/ is what these sources and the pinned compiler make."""
    name = f"{recipe.variant.name}.optgen"
    path = write_bundle(recipe.build(use_cache=False), tmp_path / name)
    new, old = read_bundle(path), read_bundle(resources.artifacts() / name)
    changed = _differ(new, old) or "its manifest"
    if new.manifest != old.manifest or _differ(new, old):
        pytest.fail(f"{name} is out of date (run scripts/build_artifacts): {changed} changed")
    assert write_bundle(old, tmp_path / "again.optgen").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.variant.name)
def test_every_bundle_is_up_to_date(recipe: Recipe) -> None:
    """All of them take ten minutes to build: here their f32 kernel for one target, and all that needs no compiler."""
    old = read_bundle(resources.artifacts() / f"{recipe.variant.name}.optgen")
    one = dataclasses.replace(recipe, dtypes=("f32",), targets=("cpu:x86-64-v3",))
    new = one.build()
    assert not _differ(new, old), f"{recipe.variant.name} is out of date: run scripts/build_artifacts"
    assert len(old.manifest.kernels) == len(recipe.dtypes) + recipe.fast
    # The format is that of the newest module: those for GPUs are not built here.
    kept = dataclasses.replace(old.manifest, kernels=(), files={}, format=new.manifest.format)
    assert dataclasses.replace(new.manifest, kernels=(), files={}) == kept


def test_every_prebuilt_bundle_has_a_recipe() -> None:
    assert prebuilt_names() == sorted(r.variant.name for r in recipes())


def test_prebuilt_bundles_hold_what_is_promised() -> None:
    for name in ("sgd", "sgd-momentum", "sgd-momentum-nesterov", "adam", "adamw"):
        manifest = prebuilt_bundle(name).manifest
        assert [k.dtypes["param"] for k in manifest.kernels] == ["f32", "f64", "bf16", "f16", "f32"]
        for kernel in manifest.kernels:
            targets = {m.target for m in kernel.modules}
            assert {"cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:aarch64", "cuda"} <= targets
            assert ("vulkan" in targets) == (kernel.dtypes["param"] != "f64")
            assert all(m.in_place and m.copies == 0 for m in kernel.modules)
            wide = "f64" if kernel.dtypes["param"] == "f64" else "f32"
            assert all(o.dtype == wide for o in kernel.operands if o.role == "state")


def test_no_path_of_a_machine_is_in_a_bundle() -> None:
    home = str(Path.home()).encode()
    for name in prebuilt_names():
        for file, data in prebuilt_bundle(name).files.items():
            assert home not in data, (name, file)
            assert b"/site-packages/" not in data, (name, file)
            assert os.fsencode(str(resources.artifacts().parent)) not in data, (name, file)


@pytest.mark.parametrize("name", ["x.optgen", "folder"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    bundle = prebuilt_bundle("adamw")
    path = write_bundle(bundle, tmp_path / name)
    assert read_bundle(path) == bundle
    assert path.is_dir() == (name == "folder")
    write_bundle(bundle, path)  # over itself
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    opt = optgen.load(path, device="local-sync", weight_decay=0.5)
    assert opt.defaults["weight_decay"] == 0.5


def test_the_manifest_survives_json() -> None:
    manifest = prebuilt_bundle("adam").manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    data = json.loads(manifest.to_json())
    data["something_new"] = 1  # keys that a later optgen adds are ignored
    assert Manifest.from_json(json.dumps(data)) == manifest


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = prebuilt_bundle("sgd")
    for name in ("x.optgen", "folder"):
        path = write_bundle(bundle, tmp_path / name)

        def fail(*_: Any) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="disk full"):
                write_bundle(prebuilt_bundle("adamw"), path)
        assert read_bundle(path) == bundle
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.optgen"]


def test_what_is_not_a_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not overwritten"):
        write_bundle(prebuilt_bundle("sgd"), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no bundle at"):
        optgen.load(tmp_path / "nothing.optgen")
    (tmp_path / "text.optgen").write_text("hello")
    with pytest.raises(BundleError, match="damaged or not a bundle"):
        optgen.load(tmp_path / "text.optgen")
    with zipfile.ZipFile(tmp_path / "zip.optgen", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        optgen.load(tmp_path / "zip.optgen")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        optgen.load(tmp_path / "empty")


def test_truncation_is_noticed_everywhere(tmp_path: Path) -> None:
    data = (resources.artifacts() / "sgd.optgen").read_bytes()
    path = tmp_path / "cut.optgen"
    for part in range(0, 20):
        path.write_bytes(data[: len(data) * part // 20])
        with pytest.raises(BundleError):
            optgen.load(path)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    """IREE itself loads most damaged modules without a word."""
    bundle = prebuilt_bundle("sgd")
    folder = write_bundle(bundle, tmp_path / "sgd")
    rng = np.random.default_rng(0)
    for name in bundle.files:
        file = folder / name
        good = file.read_bytes()
        bad = bytearray(good)
        bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        with pytest.raises(BundleError, match=f"'{name}'"):
            optgen.load(folder)
        file.unlink()
        with pytest.raises(BundleError, match="missing"):
            optgen.load(folder)
        file.write_bytes(good)
    optgen.load(folder)


def test_damage_anywhere_in_the_file(tmp_path: Path) -> None:
    data = bytearray((resources.artifacts() / "adamw.optgen").read_bytes())
    rng = np.random.default_rng(1)
    expected = prebuilt_bundle("adamw")
    for _ in range(60):
        position = int(rng.integers(len(data)))
        data[position] ^= 0x55
        (tmp_path / "x.optgen").write_bytes(data)
        try:
            # What loads is either refused or, where the byte meant nothing, the same in everything that is used.
            found = read_bundle(tmp_path / "x.optgen")
        except BundleError:
            pass
        else:
            assert found.files == expected.files
        data[position] ^= 0x55


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    bundle = prebuilt_bundle("sgd")
    data = json.loads(bundle.manifest.to_json())
    data["format"] = FORMAT + 1
    storage.write_files(tmp_path / "new.optgen", {"manifest.json": json.dumps(data).encode(), **bundle.files})
    with pytest.raises(BundleVersionError, match=f"format {FORMAT + 1}, newer than this optgen reads"):
        optgen.load(tmp_path / "new.optgen")


def test_a_newer_runtime_is_asked_for(tmp_path: Path) -> None:
    bundle = prebuilt_bundle("sgd")
    data = json.loads(bundle.manifest.to_json())
    data["min_runtime"] = "99.0"
    changed = Bundle(Manifest.from_json(json.dumps(data)), bundle.files)
    with pytest.raises(BundleVersionError, match=r"needs iree-base-runtime 99\.0"):
        optgen.Optimizer(changed)
