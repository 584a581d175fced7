"""What a rule is written in, and traced with."""

from optgen.dsl.chain import chain as chain
from optgen.dsl.decay import Decay as Decay
from optgen.dsl.ops import global_norm as global_norm
from optgen.dsl.ops import is_finite as is_finite
from optgen.dsl.ops import maximum as maximum
from optgen.dsl.ops import minimum as minimum
from optgen.dsl.ops import norm as norm
from optgen.dsl.ops import sign as sign
from optgen.dsl.ops import sqrt as sqrt
from optgen.dsl.ops import tree_max as tree_max
from optgen.dsl.ops import tree_min as tree_min
from optgen.dsl.ops import tree_sum as tree_sum
from optgen.dsl.ops import where as where
from optgen.dsl.rule import Rule as Rule
from optgen.dsl.rule import rule as rule
from optgen.dsl.trace import trace as trace
from optgen.dsl.variant import Dtypes as Dtypes
from optgen.dsl.variant import KernelSpec as KernelSpec
from optgen.dsl.variant import Variant as Variant
