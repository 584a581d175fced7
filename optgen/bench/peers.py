"""The peers: whoever else makes such updates, behind one interface. Each is imported when it is first asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from optgen.bench.data import Data
from optgen.bench.work import Case
from optgen.errors import OptgenError


class AbsentError(OptgenError):
    """A peer cannot be measured: the message says why."""


class Peer(ABC):
    """One way to make a case's updates. Made with tensors as before the first update."""

    @abstractmethod
    def step(self) -> None:
        """One update, done when this returns."""

    @abstractmethod
    def params(self) -> list[np.ndarray]:
        """The params as they are now."""


@dataclass(frozen=True)
class PeerKind:
    """A line of the table of peers.

    Attributes:
        name: on the command line and in results.
        label: for people.
        factory: ``module:class`` below ``optgen.bench``.
        leaves: how many it is given at most.
        why: what happens beyond that.
        slow: whether it is left out of quick runs.
    """

    name: str
    label: str
    factory: str
    leaves: int = 1_000_000
    why: str = ""
    slow: bool = False

    def make(self, case: Case, data: Data, threads: int) -> Peer:
        """The peer for a case.

        Raises:
            AbsentError: if it is not installed here, or does not do such updates.
        """
        if len(case.work.shapes) > self.leaves:
            raise AbsentError(f"not run on more than {self.leaves} leaves: {self.why}")
        module, _, name = self.factory.partition(":")
        peer: Peer = getattr(import_module(f"optgen.bench.{module}"), name)(data, threads)
        return peer


_COMPILES = "its compile time grows with their number"

_ALL = (
    PeerKind("limit", "limit (C)", "limit:Limit"),
    PeerKind("optgen", "optgen step", "peer_optgen:Step"),
    PeerKind("optgen-bound", "optgen bound", "peer_optgen:Bound"),
    PeerKind("optgen-fast", "optgen bound, f32 arithmetic", "peer_optgen:Fast"),
    PeerKind("optgen-packed", "optgen packed", "peer_optgen:Packed"),
    PeerKind("torch-fused", "torch fused", "peer_torch:Fused"),
    PeerKind("torch-foreach", "torch foreach", "peer_torch:Foreach"),
    PeerKind("torch-compile", "torch.compile", "peer_torch:Compiled", 200, _COMPILES, slow=True),
    PeerKind("torch-composed", "torch composition", "peer_torch:Composed"),
    PeerKind("optax", "optax, jitted, donated", "peer_optax:Optax", 1000, _COMPILES),
    PeerKind("deepspeed", "DeepSpeedCPUAdam", "peer_deepspeed:DeepSpeed"),
    PeerKind("mlx", "MLX", "peer_mlx:Mlx"),
    PeerKind("tvm", "TVM relax", "peer_tvm:Tvm", 200, _COMPILES, slow=True),
    PeerKind("numpy", "numpy in place", "peer_numpy:Numpy"),
)
PEERS = {kind.name: kind for kind in _ALL}


def need(module: str) -> Any:
    """A module that may not be installed.

    Raises:
        AbsentError: if it cannot be imported.
    """
    try:
        return import_module(module)
    except Exception as error:  # broken installations raise anything: OSError for a library, RuntimeError, ...
        text = str(error).splitlines()[0] if str(error) else ""
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        raise AbsentError("not installed" if missing else f"import failed: {type(error).__name__}: {text}") from error


def only_f32(case: Case) -> None:
    """Refuses bf16 params.

    Raises:
        AbsentError: for them.
    """
    if case.dtype != "f32":
        raise AbsentError("keeps no f32 state for bf16 params")
