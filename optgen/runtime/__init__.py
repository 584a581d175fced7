"""Loading bundles and applying them; needs numpy and iree.runtime, and neither JAX nor the compiler."""

from optgen.runtime.device import Device as Device
from optgen.runtime.device import get_device as get_device
from optgen.runtime.device import list_devices as list_devices
from optgen.runtime.files import read_arrays as read_arrays
from optgen.runtime.files import write_arrays as write_arrays
from optgen.runtime.loading import load as load
from optgen.runtime.loading import prebuilt as prebuilt
from optgen.runtime.optimizer import Optimizer as Optimizer
from optgen.runtime.saved import load_state as load_state
from optgen.runtime.saved import save_state as save_state
from optgen.runtime.transform import BoundTree as BoundTree
from optgen.runtime.transform import TreeOptimizer as TreeOptimizer
