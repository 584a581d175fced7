"""f64 arithmetic for devices without f64: each number as an unevaluated sum of two f32.

The error-free transforms are Knuth's and Dekker's (Dekker, A floating-point technique for extending the available
precision, 1971). Two things make them survive GPU compilers, which may treat float operations as real numbers:

* products are split by masking bits, so that every partial product is exact and contraction to fma changes nothing;
* a sum that is subtracted from again passes through an integer xor with a number that is 0 at run time but that the
  compiler does not know. Without it, Mesa folds ``(a + b) - a`` to ``b``.

An f64 value with the SSA name ``%x`` is the pair ``%x_h``, ``%x_l``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from optgen.errors import LoweringError
from optgen.lower.graph import Node, Value
from optgen.lower.halves import convert_half
from optgen.lower.ops import OPS, constant

#: SSA name of the i32 that is 0 at run time.
OPAQUE_ZERO = "%opaque_zero"

Pair = tuple[str, str]


def write_pair_nodes(
    nodes: Iterable[Node], name: Callable[[Value], str], prefix: str = "%p", *, halves: bool = False
) -> list[str]:
    """The MLIR of ``nodes`` with every f64 value as a pair of f32.

    Args:
        nodes: in order; of f64, f32, 16-bit and boolean values.
        name: gives the SSA name of a value, for f64 its stem.
        prefix: of the names of temporaries.
        halves: whether f16 is converted by integer arithmetic.

    Raises:
        LoweringError: for an operation on a type that it does not exist for.
    """
    writer = _Writer(prefix, halves)
    for node in nodes:
        writer.node(node, name)
    return writer.lines


class _Writer:
    def __init__(self, prefix: str, halves: bool) -> None:
        self.lines: list[str] = []
        self.prefix = prefix
        self.halves = halves
        self.count = 0

    # Single operations on f32.

    def fresh(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"

    def op(self, template: str, *operands: str, dtype: str = "f32") -> str:
        result = self.fresh()
        self.lines.append(f"{result} = {template} {', '.join(operands)} : {dtype}")
        return result

    def add(self, a: str, b: str) -> str:
        return self.op("arith.addf", a, b)

    def sub(self, a: str, b: str) -> str:
        return self.op("arith.subf", a, b)

    def mul(self, a: str, b: str) -> str:
        return self.op("arith.mulf", a, b)

    def number(self, value: float, dtype: str = "f32") -> str:
        result = self.fresh()
        self.lines.append(constant(result, value, dtype))
        return result

    def integer(self, value: int) -> str:
        return self.number(value, "i32")

    def cast(self, x: str, source: str, target: str) -> str:
        result = self.fresh()
        self.lines.append(f"{result} = arith.bitcast {x} : {source} to {target}")
        return result

    def opaque(self, x: str) -> str:
        """``x``, by a way that the compiler cannot see through."""
        bits = self.op("arith.xori", self.cast(x, "f32", "i32"), OPAQUE_ZERO, dtype="i32")
        return self.cast(bits, "i32", "f32")

    def select(self, condition: str, a: str, b: str) -> str:
        return self.op("arith.select", condition, a, b)

    def finite(self, x: str) -> str:
        return self.op("arith.cmpf olt,", self.op("math.absf", x), self.number(float("inf")))

    def convert(self, result: str, x: str, source: str, target: str) -> list[str]:
        if "f16" in (source, target):
            return convert_half("convert", result, x, source, target, native=not self.halves)
        return OPS["convert"].write(result, [x], source, target)

    # Error-free transforms.

    def two_sum(self, a: str, b: str) -> Pair:
        """``a + b`` and its rounding error."""
        total = self.opaque(self.add(a, b))
        other = self.opaque(self.sub(total, a))
        return total, self.add(self.sub(a, self.sub(total, other)), self.sub(b, other))

    def normal(self, high: str, low: str) -> Pair:
        """The pair with the same sum whose first number is that sum, rounded; infinities and NaN by themselves."""
        low = self.select(self.finite(high), low, self.number(0.0))  # the error of what overflowed is NaN
        total = self.opaque(self.add(high, low))
        error = self.sub(low, self.sub(total, high))
        return total, self.select(self.finite(total), error, self.number(0.0))

    def split_bits(self, x: str) -> Pair:
        """``x`` as the sum of two numbers of 12 bits, whose products are exact."""
        masked = self.op("arith.andi", self.cast(x, "f32", "i32"), self.integer(-4096), dtype="i32")
        high = self.cast(masked, "i32", "f32")
        return high, self.sub(x, high)

    def two_product(self, a: str, b: str) -> Pair:
        """``a * b`` and its rounding error."""
        product = self.opaque(self.mul(a, b))
        ah, al = self.split_bits(a)
        bh, bl = self.split_bits(b)
        error = self.sub(self.mul(ah, bh), product)
        error = self.add(error, self.mul(ah, bl))
        error = self.add(error, self.mul(al, bh))
        return product, self.add(error, self.mul(al, bl))

    # Operations on pairs.

    def pair_add(self, a: Pair, b: Pair) -> Pair:
        total, error = self.two_sum(a[0], b[0])
        low, low_error = self.two_sum(a[1], b[1])  # both halves exactly: the high ones may cancel
        total, error = self.normal(total, self.add(error, low))
        return self.normal(total, self.add(error, low_error))

    def negate(self, a: Pair) -> Pair:
        return self.op("arith.negf", a[0]), self.op("arith.negf", a[1])

    def pair_mul(self, a: Pair, b: Pair) -> Pair:
        product, error = self.two_product(a[0], b[0])
        cross = self.add(self.mul(a[0], b[1]), self.mul(a[1], b[0]))
        return self.normal(product, self.add(error, cross))

    def pair_div(self, a: Pair, b: Pair) -> Pair:
        # One quotient in f32, and the remainder divided again: right however roughly the device divides.
        zero = self.number(0.0)
        first = self.op("arith.divf", a[0], b[0])
        rest = self.pair_add(a, self.negate(self.pair_mul(b, (first, zero))))
        second = self.op("arith.divf", rest[0], b[0])
        usable = self.op("arith.andi", self.finite(second), self.finite(first), dtype="i1")
        return self.normal(first, self.select(usable, second, zero))

    def pair_sqrt(self, a: Pair) -> Pair:
        zero = self.number(0.0)
        root = self.op("math.sqrt", a[0])
        rest = self.pair_add(a, self.negate(self.two_product(root, root)))
        second = self.op("arith.divf", rest[0], self.add(root, root))
        return self.normal(root, self.select(self.finite(second), second, zero))  # not finite for 0 and infinity

    def less(self, a: Pair, b: Pair, strict: str, loose: str) -> str:
        high = self.op(f"arith.cmpf {strict},", a[0], b[0])
        tie = self.op("arith.cmpf oeq,", a[0], b[0])
        low = self.op(f"arith.cmpf {loose},", a[1], b[1])
        return self.op("arith.ori", high, self.op("arith.andi", tie, low, dtype="i1"), dtype="i1")

    def choose(self, condition: str, a: Pair, b: Pair) -> Pair:
        return self.select(condition, a[0], b[0]), self.select(condition, a[1], b[1])

    def node(self, node: Node, name: Callable[[Value], str]) -> None:
        values, result = node.operands, node.result
        if result.dtype != "f64" and all(v.dtype != "f64" for v in values):
            if node.op == "constant":
                assert isinstance(node.attribute, float)
                self.lines.append(constant(name(result), node.attribute, result.dtype))
                return
            extra = str(node.attribute) if node.op == "compare" else result.dtype
            self.lines += OPS[node.op].write(name(result), [name(v) for v in values], values[0].dtype, extra)
            return
        pairs = [(f"{name(v)}_h", f"{name(v)}_l") if v.dtype == "f64" else (name(v), "") for v in values]
        if result.dtype != "f64":
            self.single(node, name(result), pairs)
            return
        high, low = self.pair(node, pairs)
        zero = self.number(-0.0)  # an addition of it names the value that the graph knows it by
        self.lines.append(f"{name(result)}_h = arith.addf {high}, {zero} : f32")
        self.lines.append(f"{name(result)}_l = arith.addf {low}, {zero} : f32")

    def single(self, node: Node, result: str, pairs: list[Pair]) -> None:
        """Operations from f64 to something else."""
        if node.op == "convert" and node.result.dtype in ("f32", "f16", "bf16"):
            if node.result.dtype == "f32":
                self.lines.append(f"{result} = arith.addf {pairs[0][0]}, {self.number(-0.0)} : f32")
            else:
                self.lines += self.convert(result, pairs[0][0], "f32", node.result.dtype)
            return
        if node.op == "is_finite":
            self.lines += OPS["is_finite"].write(result, [pairs[0][0]], "f32", "i1")
            return
        if node.op == "compare":
            a, b = pairs
            direction = str(node.attribute)
            if direction in ("EQ", "NE"):
                same = self.op(
                    "arith.andi",
                    self.op("arith.cmpf oeq,", a[0], b[0]),
                    self.op("arith.cmpf oeq,", a[1], b[1]),
                    dtype="i1",
                )
                true = self.number(1.0 if direction == "NE" else 0.0, "i1")
                self.lines.append(f"{result} = arith.xori {same}, {true} : i1")
                return
            if direction in ("GT", "GE"):
                a, b = b, a
            answer = self.less(a, b, "olt", "olt" if direction in ("LT", "GT") else "ole")
            self.lines.append(f"{result} = arith.ori {answer}, {answer} : i1")
            return
        raise LoweringError(f"'{node.op}' from f64 to {node.result.dtype} has no form for devices without f64")

    def pair(self, node: Node, pairs: list[Pair]) -> Pair:
        """Operations to f64."""
        match node.op:
            case "constant":
                import numpy as np

                assert isinstance(node.attribute, float)
                high = np.float32(node.attribute)
                low = np.float32(node.attribute - float(high)) if np.isfinite(high) else np.float32(0)
                return self.number(float(high)), self.number(float(low))
            case "convert":
                source = node.operands[0].dtype
                if source == "f32":
                    return pairs[0][0], self.number(0.0)
                result = self.fresh()
                self.lines += self.convert(result, pairs[0][0], source, "f32")
                return result, self.number(0.0)
            case "add":
                return self.pair_add(*pairs)
            case "subtract":
                return self.pair_add(pairs[0], self.negate(pairs[1]))
            case "multiply":
                return self.pair_mul(*pairs)
            case "divide":
                return self.pair_div(*pairs)
            case "sqrt":
                return self.pair_sqrt(pairs[0])
            case "negate":
                return self.negate(pairs[0])
            case "abs":
                negative = self.op("arith.cmpf olt,", pairs[0][0], self.number(0.0))
                return self.choose(negative, self.negate(pairs[0]), pairs[0])
            case "select":
                return self.choose(pairs[0][0], pairs[1], pairs[2])
            case "maximum" | "minimum":
                a, b = pairs if node.op == "maximum" else pairs[::-1]
                first = self.choose(self.less(b, a, "olt", "ole"), pairs[0], pairs[1])
                nan = self.op("arith.cmpf une,", pairs[0][0], pairs[0][0])
                return self.choose(nan, pairs[0], first)
            case "sign":
                result = self.fresh()
                self.lines += OPS["sign"].write(result, [pairs[0][0]], "f32", "f32")
                return result, self.number(0.0)
        if node.op in OPS and all(v.dtype == "f64" for v in node.operands):
            # Transcendental functions have f32's precision: no rule here needs more of them inside its loop.
            result = self.fresh()
            self.lines += OPS[node.op].write(result, [p[0] for p in pairs], "f32", "f32")
            return result, self.number(0.0)
        raise LoweringError(f"'{node.op}' has no form for devices without f64")
