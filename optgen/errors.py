"""Every exception that optgen raises on purpose.

All derive from :class:`OptgenError`, and each also from the builtin that describes it best, so that code
which knows nothing of optgen can still catch a ``ValueError`` or a ``FileNotFoundError``.
"""

from __future__ import annotations

from collections.abc import Iterable


class OptgenError(Exception):
    """Base of every optgen exception.

    Attributes:
        where: what the compiler says of the place in the program, where it says anything.
    """

    where: str = ""


class RuleError(OptgenError, ValueError):
    """A rule is not well formed: unknown state, wrong number of results, a shape or dtype that changed."""


class UnknownRuleError(OptgenError, KeyError):
    """No rule of that name and convention is registered."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class HyperparameterError(OptgenError, ValueError):
    """A hyperparameter is unknown, missing, NaN, or outside the range that its rule allows."""


class LoweringError(OptgenError, ValueError):
    """A traced rule cannot be lowered to the kernel that was asked for."""


class HazardError(LoweringError):
    """A program would overwrite an argument that something still reads.

    Attributes:
        arguments: the positions of such arguments; -1 where it is not known which.
    """

    def __init__(self, message: str, arguments: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.arguments = tuple(arguments)


class UnknownTargetError(OptgenError, ValueError):
    """A target name is not one that optgen knows; the message lists those that it does."""


class UnsupportedTargetError(OptgenError, ValueError):
    """The target is known but cannot run this kernel (say, f64 on Vulkan)."""


class CompilerNotFoundError(OptgenError, ImportError):
    """JAX or iree-compile is not installed; the message names the extra to install."""


class CompileError(OptgenError, RuntimeError):
    """iree-compile refused a module; the message has its first error, the log file the rest."""


class WrongResultError(CompileError):
    """A compiled module gives wrong results on a device of this machine, or others each time it runs.

    Attributes:
        target: what the module was compiled for.
        device: what it ran on.
        result: the name of the first result that is wrong.
    """

    def __init__(self, message: str, target: str = "", device: str = "", result: str = "") -> None:
        super().__init__(message)
        self.target, self.device, self.result = target, device, result


class BundleError(OptgenError, ValueError):
    """A bundle is damaged, truncated, or not a bundle at all."""


class BundleVersionError(BundleError):
    """A bundle was written in a newer format, or needs a newer runtime, than this optgen has."""


class BundleNotFoundError(OptgenError, FileNotFoundError):
    """There is no bundle at that path, or no prebuilt bundle of that name."""


class FileError(OptgenError, ValueError):
    """A file of arrays is not there, cannot be read, or has nothing to do with the task."""


class DeviceError(OptgenError, RuntimeError):
    """A device is not there, or no module of the bundle can run on it."""


class MissingFeaturesError(DeviceError):
    """A bundle has modules for this kind of processor, but each needs extensions that this machine's lacks.

    Attributes:
        missing: those that the least demanding module needs, in the Linux kernel's names.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class TreeError(OptgenError, ValueError):
    """Two trees that must have the same structure differ; the message names the first leaf that does."""


class LeafError(OptgenError, ValueError):
    """A leaf has the wrong shape, dtype or layout, or cannot be written; the message names its path."""


class OverlapError(LeafError):
    """Two leaves of one call share memory and at least one of them is written."""


class UnprovenWarning(UserWarning):
    """Compiled code could have been tested here, but for a tool that is not installed."""
