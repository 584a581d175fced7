"""Artifacts: compiled rules as files."""

from optgen.artifact.bundle import Bundle as Bundle
from optgen.artifact.bundle import read_bundle as read_bundle
from optgen.artifact.bundle import write_bundle as write_bundle
from optgen.artifact.manifest import FORMAT as FORMAT
from optgen.artifact.manifest import KernelInfo as KernelInfo
from optgen.artifact.manifest import LeafInfo as LeafInfo
from optgen.artifact.manifest import Manifest as Manifest
from optgen.artifact.manifest import MicroInfo as MicroInfo
from optgen.artifact.manifest import ModuleInfo as ModuleInfo
from optgen.artifact.manifest import OperandInfo as OperandInfo
from optgen.artifact.manifest import ProbeCase as ProbeCase
from optgen.artifact.manifest import ReductionInfo as ReductionInfo
