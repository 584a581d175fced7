"""What is measured: trees of leaves, rules, and the bytes that each update must move."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Shape = tuple[int, ...]

LR = 1e-2
MOMENTUM = 0.9
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
MAX_NORM, AVERAGE = 1.0, 0.999


@dataclass(frozen=True)
class Work:
    """A tree to update.

    Attributes:
        name: what it is called on the command line.
        shapes: of its leaves.
    """

    name: str
    shapes: tuple[Shape, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def elements(self) -> int:
        """The number of elements of all leaves."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Rule:
    """An update rule, as every peer is to compute it.

    Attributes:
        name: what it is called on the command line.
        slots: the state's tensors.
        decay: the decoupled weight decay.
        again: for rules that need a norm before the update, the tensors that they read for it.
        like: the rule that it adds something to.
    """

    name: str
    slots: tuple[str, ...]
    decay: float = 0.0
    again: tuple[str, ...] = ()
    like: str = ""

    @property
    def clips(self) -> bool:
        """Whether the grads' global norm is limited."""
        return "clip" in self.name

    @property
    def averages(self) -> bool:
        """Whether a running mean of the params is kept."""
        return "ema" in self.name


@dataclass(frozen=True)
class Case:
    """One measurement: this rule on that work, with params and grads of this dtype and f32 state."""

    work: Work
    rule: Rule
    dtype: str

    @property
    def bytes(self) -> int:
        """What an update must read and write: param and grad are read, the param is written, state is both.

        Rules with norms read some of it twice; leaves that fit into a cache need not fetch it twice.
        """
        param = 2 if self.dtype == "bf16" else 4
        again = sum(param if name in ("w", "g") else 4 for name in self.rule.again)
        return (3 * param + 8 * len(self.rule.slots) + again) * self.work.elements

    @property
    def resident(self) -> int:
        """The memory that the tensors take."""
        param = 2 if self.dtype == "bf16" else 4
        return (2 * param + 4 * len(self.rule.slots)) * self.work.elements


def resnet50() -> tuple[Shape, ...]:
    """The params of ResNet-50, in the order of torchvision."""
    shapes: list[Shape] = []

    def convolution(inputs: int, outputs: int, size: int) -> None:
        shapes.extend([(outputs, inputs, size, size), (outputs,), (outputs,)])  # and the norm's scale and shift

    convolution(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(inputs, width, 1)
            convolution(width, width, 3)
            convolution(width, 4 * width, 1)
            if block == 0:
                convolution(inputs, 4 * width, 1)  # the shortcut
            inputs = 4 * width
    return (*shapes, (1000, inputs), (1000,))


def gpt2() -> tuple[Shape, ...]:
    """The params of GPT-2 small; the output layer is the embedding, transposed, and no param of its own."""
    width = 768
    block: tuple[Shape, ...] = (
        (width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    )  # fmt: skip
    return ((50257, width), (1024, width), *(12 * block), (width,), (width,))


_ALL = (
    Work("64", ((64,),)),
    Work("4096", ((4096,),)),
    Work("1M", ((2**20,),)),
    Work("16M", ((2**24,),)),
    Work("100M", ((100_000_000,),)),
    Work("resnet50", resnet50()),
    Work("gpt2", gpt2()),
    Work("10x128", ((128,),) * 10),
    Work("100x128", ((128,),) * 100),
    Work("1000x128", ((128,),) * 1000),
    Work("10000x32", ((32,),) * 10_000),
)
WORKS = {work.name: work for work in _ALL}
RULES = {
    rule.name: rule
    for rule in (
        Rule("sgd", ()),
        Rule("momentum", ("m",)),
        Rule("adam", ("m", "v")),
        Rule("adamw", ("m", "v"), 0.01),
        Rule("lion", ("m",), 0.01),
        Rule("lamb", ("m", "v"), 0.01, again=("w", "g", "m", "v")),
        Rule("adamw-clip", ("m", "v"), 0.01, again=("g",), like="adamw"),
        Rule("adamw-clip-ema", ("m", "v", "e"), 0.01, again=("g",), like="adamw"),
    )
}
QUICK = ("64", "4096", "1M", "16M", "resnet50", "10x128", "1000x128")

#: Where rules with norms are measured if nothing is asked for.
NORMS = ("64", "1M", "16M", "resnet50", "1000x128")

#: Said in every report.
OUT_OF_SCOPE = ("bf16 params for peers other than optgen and the limit: none of them keeps f32 state for these",)


def choose(works: Iterable[str], rules: Iterable[str], *, quick: bool, memory: int | None) -> list[Case]:
    """The cases to measure.

    Args:
        works: names; by default all that fit, or the quick ones.
        rules: names; by default all, or AdamW alone where it is to be quick.
        quick: whether to take few of both.
        memory: bytes that are free; works that were not asked for by name are left out if they might not fit.
    """
    names = list(works)
    if not names:
        names = list(QUICK) if quick else list(WORKS)
    chosen = [RULES[name] for name in rules or (["adamw"] if quick else RULES)]
    cases = []
    for rule in chosen:
        for name in names:
            for dtype in ("f32", "bf16"):
                case = Case(WORKS[name], rule, dtype)
                if dtype == "bf16" and (rule.name not in ("adam", "adamw") or case.work.elements < 2**20):
                    continue
                # What such rules add to AdamW shows on large trees, and LAMB's float64 reference takes its time.
                if name not in works and (rule.again or rule.name == "lion") and name not in NORMS:
                    continue
                # Peers share the tensors but for some that have their own, and JAX has two sets at times.
                if name not in works and memory is not None and 6 * case.resident > memory:
                    continue
                cases.append(case)
    return cases
