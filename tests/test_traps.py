"""What users do to arrays, trees and optimizers between two steps: noticed and used right, or refused."""

from __future__ import annotations

import collections
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import optgen as og
from optgen.errors import FileError, HyperparameterError, LeafError, OptgenError, RuleError, TreeError
from optgen.interop.torch import pack_parameters


def loss(params: Any, batch: Any) -> Any:
    return jnp.mean((batch["x"] @ params["w"]) ** 2)


W, BATCH = {"w": np.ones((3, 2), "f")}, {"x": np.ones((4, 3), "f")}


@pytest.fixture(scope="module")
def kinds() -> dict[str, Any]:
    """An optimizer of each kind, and one call of it."""

    def rule(opt: Any, params: Any, step: Any = 0) -> None:
        state = opt.init(params) | {"step": step}
        opt.step(params, {"w": np.ones((3, 2), "f")}, state, lr=0.1)

    def tree(opt: Any, params: Any, step: Any = 0) -> None:
        opt.step(params, {"w": np.ones((3, 2), "f")}, opt.init(params))

    def whole(opt: Any, params: Any, step: Any = 0) -> None:
        state = opt.init(params) | {"step": step}
        opt.step(params, state, BATCH, lr=0.1)

    def function(opt: Any, params: Any, step: Any = 0) -> None:
        opt(params, BATCH)

    return {
        "rule": (og.prebuilt("adamw"), rule),
        "optax": (og.compile(optax.adam(0.1), like=W), tree),
        "step": (og.train.TrainStep(og.train.compile_step(loss, W, BATCH, "adamw")), whole),
        "function": (og.train.CompiledFunction(og.train.compile_function(loss, W, BATCH)), function),
    }


def fresh() -> dict[str, np.ndarray]:
    return {"w": np.ones((3, 2), "f")}


def _spawned(opt: Any, queue: Any) -> None:
    params = {"w": np.ones((3, 2), "f")}
    opt.step(params, {"w": np.ones((3, 2), "f")}, opt.init(params), lr=0.1)
    queue.put(params["w"])


@pytest.mark.parametrize("kind", ["rule", "optax", "step", "function"])
def test_copies_and_pickles_after_a_step(kinds: dict[str, Any], kind: str) -> None:
    opt, call = kinds[kind]
    wanted = fresh()
    call(opt, wanted)
    for made in (pickle.loads(pickle.dumps(opt)), copy.copy(opt), copy.deepcopy(opt)):
        params = fresh()
        call(made, params)
        np.testing.assert_array_equal(params["w"], wanted["w"])


def test_an_optimizer_reaches_a_spawned_process(kinds: dict[str, Any]) -> None:
    opt, call = kinds["rule"]
    wanted = fresh()
    call(opt, wanted)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_spawned, args=(opt, queue))
    child.start()
    found = queue.get(timeout=120)
    child.join()
    np.testing.assert_array_equal(found, wanted["w"])


def test_bound_steps_are_not_copied(kinds: dict[str, Any]) -> None:
    params = fresh()
    rule, tree = kinds["rule"][0], kinds["optax"][0]
    for bound in (rule.bind(params, fresh(), rule.init(params)), tree.bind(params, fresh(), tree.init(params))):
        for make in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(OptgenError, match="cannot be copied or pickled"):
                make(bound)


class Named(dict):  # type: ignore[type-arg]
    def __init__(self, *, name: str = "", **items: Any) -> None:
        super().__init__(**items)
        self.name = name


class Strange(dict):  # type: ignore[type-arg]
    def __init__(self, items: Any = ()) -> None:
        super().__init__({"other": 1})


MAPPINGS = {
    "defaultdict": lambda d: collections.defaultdict(dict, d),
    "OrderedDict": collections.OrderedDict,
    "UserDict": collections.UserDict,
    "proxy": types.MappingProxyType,
    "named": lambda d: Named(name="net", **d),
    "strange": lambda d: _filled(Strange(), d),
    "chain map": lambda d: collections.ChainMap(d),
}


def _filled(tree: Any, items: Any) -> Any:
    tree.clear()
    tree.update(items)
    return tree


@pytest.mark.parametrize("kind", ["rule", "optax", "step", "function"])
@pytest.mark.parametrize("make", MAPPINGS.values(), ids=MAPPINGS)
def test_mappings_of_any_type(kinds: dict[str, Any], kind: str, make: Any) -> None:
    opt, call = kinds[kind]
    wanted, inner = fresh(), fresh()
    call(opt, wanted)
    call(opt, make(inner))
    np.testing.assert_array_equal(inner["w"], wanted["w"])


def test_what_is_no_tree_is_refused(kinds: dict[str, Any]) -> None:
    class Params:
        w = np.ones(3, "f")

    with pytest.raises(LeafError, match="must be a numpy, torch, JAX or optgen array"):
        kinds["rule"][0].init(Params())


@pytest.mark.parametrize("kind", ["rule", "step"])
@pytest.mark.parametrize("step", [-1, 2.5, "3", True, None, float("nan"), float("inf"), np.array([3]), -1.0])
def test_wrong_counts_of_steps(kinds: dict[str, Any], kind: str, step: Any) -> None:
    opt, call = kinds[kind]
    params = fresh()
    with pytest.raises(TreeError, match="'step' must be a whole number of steps"):
        call(opt, params, step)
    np.testing.assert_array_equal(params["w"], W["w"])


@pytest.mark.parametrize("kind", ["rule", "step"])
@pytest.mark.parametrize("step", [3, 3.0, np.int32(3), np.array(3), torch.tensor(3), jnp.asarray(3)])
def test_counts_of_steps_of_any_type(kinds: dict[str, Any], kind: str, step: Any) -> None:
    opt, call = kinds[kind]
    wanted, params = fresh(), fresh()
    call(opt, wanted, 3)
    call(opt, params, step)
    np.testing.assert_array_equal(params["w"], wanted["w"])


@pytest.mark.parametrize("kind", ["rule", "optax", "step"])
def test_params_that_overlap_themselves(kinds: dict[str, Any], kind: str) -> None:
    opt, call = kinds[kind]
    windows, broadcast = (np.lib.stride_tricks.as_strided(np.zeros(8, "f"), (3, 2), s) for s in ((4, 4), (0, 4)))
    for array in (windows, torch.zeros(8).unfold(0, 2, 1)[:3], broadcast):
        with pytest.raises(LeafError, match="'w' must have memory of its own for each element"):
            call(opt, {"w": array})
    apart = np.lib.stride_tricks.as_strided(np.zeros(8, "f"), (3, 2), (8, 12))  # 0, 3, 2, 5, 4, 7: all different
    call(opt, {"w": apart})


def test_grads_that_overlap_themselves_are_read() -> None:
    opt, w = og.prebuilt("sgd"), torch.zeros(3, 2)
    opt.step({"w": w}, {"w": torch.ones(1, 2).expand(3, 2)}, {"step": 0}, lr=1.0)
    assert w.tolist() == [[-1, -1]] * 3


@pytest.mark.filterwarnings("ignore:Setting the (strides|shape|dtype):DeprecationWarning")  # it is done all the same
@pytest.mark.parametrize("change", ["torch param", "torch grad", "numpy strides", "numpy shape", "numpy dtype"])
def test_layouts_that_change_in_place(change: str) -> None:
    opt = og.prebuilt("sgd")
    w: Any = np.arange(9, dtype="f").reshape(3, 3).copy()
    g: Any = np.arange(9, dtype="f").reshape(3, 3) * np.float32(0.25)
    if change.startswith("torch"):
        w, g = torch.from_numpy(w), torch.from_numpy(g)
    for _ in range(2):
        opt.step({"w": w}, {"w": g}, {"step": 0}, lr=0.5)
    if change in ("numpy shape", "numpy dtype"):
        if change == "numpy shape":
            g.shape = (9, 1)
        else:
            g.dtype = np.int32
        with pytest.raises(LeafError, match=r"must have the shape of its param|must have dtype"):
            opt.step({"w": w}, {"w": g}, {"step": 0}, lr=0.5)
        return
    if change == "numpy strides":
        g.strides = g.strides[::-1]
    else:
        (w if change == "torch param" else g).t_()
    wanted = np.asarray(w) - 0.5 * np.asarray(g)
    opt.step({"w": w}, {"w": g}, {"step": 0}, lr=0.5)
    np.testing.assert_array_equal(np.asarray(w), wanted)


def test_a_bound_step_sees_what_is_somewhere_else() -> None:
    opt, model = og.prebuilt("adam"), torch.nn.Linear(3, 2)
    params = dict(model.named_parameters())
    held = {k: torch.ones_like(p) for k, p in params.items()}
    state = opt.init(params)
    bound = opt.bind(params, held, state)
    bound.step(lr=0.5)
    with torch.no_grad():
        model.weight.data = torch.full((2, 3), 4.0)
    bound.step(lr=0.5)
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 3), 3.5))
    state["m"] = {k: torch.full_like(p, 8.0).detach() for k, p in params.items()}
    bound.step(lr=0.5)
    assert state["m"]["weight"][0, 0] == pytest.approx(7.3)
    state["m"]["bias"] = torch.zeros(2)
    bound.step(lr=0.5)
    torch.testing.assert_close(state["m"]["bias"], torch.full((2,), 0.1))
    bound.state = opt.init(params)
    bound.step(lr=0.5)
    assert bound.state["step"] == 1
    model.to(torch.float64)
    with pytest.raises(LeafError, match="must have dtype"):
        bound.step(lr=0.5)


@pytest.mark.parametrize("grads", ["bound", "stepped"])
def test_torchs_own_loop_after_packing(grads: str) -> None:
    """``zero_grad()`` as torch has it, a frozen parameter that is trained later, and one that the loss does not use."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2), torch.nn.Linear(5, 5))
    model[0].weight.requires_grad_(False)
    twin = copy.deepcopy(model)
    other = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    params, held = pack_parameters(dict(model.named_parameters()))
    opt = og.prebuilt("adamw")
    state = opt.init(params)
    bound = opt.bind(params, held, state)
    x = torch.randn(3, 4)
    for i in range(8):
        for net in (model, twin):
            if i == 4:
                net[0].weight.requires_grad_(True)
            net.zero_grad(set_to_none=i % 3 != 2)
            net[1](net[0](x)).square().mean().backward()
        other.step()
        if grads == "bound":
            bound.step(lr=1e-2)
        else:
            opt.step(params, held, state, lr=1e-2)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert state["leaf_step"]["0.weight"] == 4
    assert state["leaf_step"]["2.weight"] == 0


def test_bound_to_grads_that_go_elsewhere() -> None:
    w = torch.nn.Parameter(torch.zeros(3))
    (w * torch.ones(3)).sum().backward()
    opt = og.prebuilt("sgd")
    bound = opt.bind({"w": w}, {"w": w.grad}, {"step": 0})
    bound.step(lr=1.0)
    w.grad = None
    (w * torch.full((3,), 2.0)).sum().backward()
    bound.step(lr=1.0)
    assert w.tolist() == [-3, -3, -3]
    w.grad = None
    bound.step(lr=1.0)
    assert w.tolist() == [-3, -3, -3]


def test_state_that_moves_by_the_loss_scale_in_a_whole_step() -> None:
    """As torch's GradScaler has it, overflows included; loss, metrics and evaluation are those of the loss itself."""
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((3, 2)).astype("f")}
    batches = [{"x": rng.standard_normal((4, 3)).astype("f")} for _ in range(12)]
    batches[3]["x"][0, 0] = 3e19
    for every in (1, 2):
        rule = og.chain(og.scale_by_loss(2.0**16, growth_interval=3), og.clip_by_global_norm(1.0), "sgd")
        made = og.train.compile_step(
            loss, params, batches[0], rule, metrics=["grad_norm"], accumulate=every, eval_fn=loss
        )
        step, mine = og.train.TrainStep(made), {"w": params["w"].copy()}
        state = step.init(mine)
        theirs = torch.nn.Parameter(torch.tensor(params["w"]))
        other = torch.optim.SGD([theirs], lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
        for i, batch in enumerate(batches):
            before = step.evaluate(mine, batch)
            value, metrics = step.step(mine, state, batch, lr=0.05)
            found = ((torch.tensor(batch["x"]) @ theirs) ** 2).mean()
            scaler.scale(found / every).backward()
            if i != 3:
                assert value == pytest.approx(float(found.detach()), rel=1e-5)
                assert value == pytest.approx(before, rel=1e-6)
                (exact,) = torch.autograd.grad(((torch.tensor(batch["x"]) @ theirs) ** 2).mean(), theirs)
                assert metrics["grad_norm"] == pytest.approx(float(exact.norm()), rel=1e-5)
            if i % every == every - 1:
                scaler.unscale_(other)
                torch.nn.utils.clip_grad_norm_([theirs], 1.0)
                scaler.step(other)
                scaler.update()
                other.zero_grad()
        np.testing.assert_allclose(mine["w"], theirs.detach().numpy(), atol=1e-5)
        assert state["loss_scale"] == scaler.get_scale()
        assert state["skipped"] == 1


def test_a_loss_scale_that_is_compiled_in() -> None:
    rule = og.chain(og.scale_by_loss(1024.0, dynamic=False), "sgd")
    for settings in ({}, {"bake": ["loss_scale"]}):
        step = og.train.TrainStep(og.train.compile_step(loss, W, BATCH, rule, **settings))
        params = fresh()
        step.step(params, step.init(params), BATCH, lr=0.1)
        np.testing.assert_allclose(params["w"], 1 - 0.1 * 3.0, rtol=1e-6)
    with pytest.raises(HyperparameterError, match="the loss is multiplied by it"):
        og.train.compile_step(loss, W, BATCH, rule, groups={"w": {"loss_scale": 2.0}})


def test_hyperparameters_that_steps_do_not_read() -> None:
    w = np.full(3, 2, "f")
    opt = og.prebuilt("rprop")
    with pytest.raises(HyperparameterError, match=r"'lr' has no effect on a step of 'rprop'.*init"):
        opt.step(w, np.ones(3, "f"), opt.init(w), lr=0.1)
    with pytest.raises(HyperparameterError, match="'lr' has no effect"):
        opt.bind(w, np.ones(3, "f"), opt.init(w)).step(lr=0.1)
    assert w.tolist() == [2, 2, 2]
    theirs = torch.nn.Parameter(torch.full((3,), 2.0))
    theirs.grad = torch.ones(3)
    torch.optim.Rprop([theirs], lr=0.1).step()
    for made, hypers in ((opt, {"lr": 0.1}), (og.prebuilt("rprop", lr=0.1), {}),
                         (og.prebuilt("rprop", lr=1.0, groups={"": {"lr_scale": 0.1}}), {})):  # fmt: skip
        w = np.full(3, 2, "f")
        made.step(w, np.ones(3, "f"), made.init(w, **hypers))
        np.testing.assert_array_equal(w, theirs.detach().numpy())
    with pytest.raises(RuleError, match="'lr' must be a number for rule 'rprop'"):
        og.chain("rprop", lr=og.schedule.constant(0.1))
    step = og.train.TrainStep(og.train.compile_step(loss, W, BATCH, "rprop"))
    params = fresh()
    state = step.init(params, lr=0.1)
    with pytest.raises(HyperparameterError, match="'lr' has no effect on a step"):
        step.step(params, state, BATCH, lr=0.1)
    with pytest.raises(HyperparameterError, match=r"'dampening' has no effect.*as it was compiled"):
        og.compile("sgd", dampening=0.5)


@pytest.mark.parametrize("make", ["cpu", "step", "loaded"])
def test_groups_that_match_nothing(make: str) -> None:
    groups = {"*.bais": {"weight_decay": 0.0}}
    params = {"layer": {"bias": np.ones(3, "f"), "w": np.ones(2, "f")}}
    makers = {
        "cpu": lambda: og.compile("adamw", like=params, groups=groups),
        "step": lambda: og.train.compile_step(
            lambda p, b: p["layer"]["w"].sum(), params, BATCH, "adamw", groups=groups
        ),
        "loaded": lambda: og.prebuilt("adamw", groups=groups).init(params),
    }
    with pytest.raises(HyperparameterError, match=r"'\*.bais' matches none of the 2 leaves; .* is 'layer/bias'"):
        makers[make]()


def test_a_leafs_own_name_matches() -> None:
    params = {"a[0]": {"w*": np.ones(3, "f")}, "a0": {"w": np.ones(3, "f")}}
    opt = og.prebuilt("adamw", groups={"a[0].w*": {"weight_decay": 0.5}})
    opt.step(params, {k: {n: np.zeros(3, "f") for n in v} for k, v in params.items()}, opt.init(params), lr=1.0)
    assert params["a[0]"]["w*"][0] == 0.5
    assert params["a0"]["w"][0] == 0.5  # as a pattern it is also the name of this one


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_saved_state_goes_on(tmp_path: Path, suffix: str) -> None:
    opt = og.prebuilt("nadam")
    params: Any = {"net": [np.ones(3, "f"), torch.ones(2)], "b": np.ones(1, "f")}
    state = opt.init(params)
    slopes = {"net": [np.ones(3, "f"), torch.ones(2)], "b": np.ones(1, "f")}
    opt.step(params, slopes, state, lr=0.1)
    path = og.save_state(tmp_path / f"run{suffix}", {"params": params, "state": state})
    run = og.load_state(path)
    other = {"params": copy.deepcopy(params), "state": opt.init(params)}
    held = other["state"]["m"]["net"][1]
    other = og.load_state(path, into=other)
    assert other["state"]["m"]["net"][1] is held
    for _ in range(2):
        opt.step(params, slopes, state, lr=0.1)
        opt.step(run["params"], slopes, run["state"], lr=0.1)
        opt.step(other["params"], slopes, other["state"], lr=0.1)
    for found in (run, other):
        assert (found["state"]["step"], found["state"]["mu_product"]) == (3, state["mu_product"])
    np.testing.assert_array_equal(run["params"]["net"]["1"], params["net"][1])
    np.testing.assert_array_equal(other["params"]["net"][0], params["net"][0])
    with pytest.raises(TreeError, match="lacks"):
        og.load_state(path, into={"params": params})
    with pytest.raises(LeafError, match="must be float32 of shape"):
        og.load_state(path, into={"params": params | {"b": np.ones(2, "f")}, "state": state})
    with pytest.raises(TreeError, match="must be a dict, a list or a tuple"):
        og.save_state(path, np.ones(3))
    with pytest.raises(FileError):
        og.save_state(tmp_path / "run.pkl", state)


def test_containers_are_no_arrays(tmp_path: Path) -> None:
    opt = og.prebuilt("adamw")
    with pytest.raises(TypeError, match="save_state"):
        np.savez(tmp_path / "s.npz", **opt.init(og.Container(w=np.ones(3, "f"))))


CODE = """
import numpy as np, optgen as og
opt = og.compile('sgd', momentum=0.43)
w = np.ones(2, 'f')
opt.step(w, w.copy(), opt.init(w), lr=0.5)
print(w.tolist())
"""


def run(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["with space", 'it\'s; "quoted" $HOME', "größe"])
def test_temporary_folders_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "[0.5, 0.5]" in run(TMPDIR=str(tmp_path / name), OPTGEN_CACHE=str(tmp_path / "cache"))


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = run(OPTGEN_CACHE=str(tmp_path / "file" / "cache"))
    assert "[0.5, 0.5]" in found
    assert found.count("compiles without a cache") == 1
