"""Arrays, Containers and the functional API, in the manner of ivy 1.0. Needs numpy and iree.runtime alone."""

from optgen.arrays.container import Container as Container
from optgen.arrays.creation import array as array
from optgen.arrays.creation import zeros as zeros
from optgen.arrays.creation import zeros_like as zeros_like
from optgen.arrays.functional import adam_step as adam_step
from optgen.arrays.functional import adam_update as adam_update
from optgen.arrays.functional import gradient_descent_update as gradient_descent_update
from optgen.arrays.functional import optimizer_update as optimizer_update
from optgen.arrays.ndarray import Array as Array
from optgen.arrays.printing import set_array_decimal_values as set_array_decimal_values
from optgen.arrays.printing import set_array_significant_figures as set_array_significant_figures
