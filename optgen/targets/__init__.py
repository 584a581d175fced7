"""What modules are compiled for."""

from optgen.targets.target import PREBUILT_TARGETS as PREBUILT_TARGETS
from optgen.targets.target import TARGETS as TARGETS
from optgen.targets.target import Target as Target
from optgen.targets.target import all_targets as all_targets
from optgen.targets.target import get_target as get_target
from optgen.targets.target import host_target as host_target
