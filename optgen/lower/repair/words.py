"""Programs without numbers narrower than 32 bits, for devices that store words alone.

IREE 3.13 packs them into words on Vulkan, where several kernels write into one word, and computes 8 and 16 bits in 32
without cutting off what is too much. So the program itself is written over: truth values are 0 and 1, integers are
words that hold the same number, and what may leave its type's range is brought back into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.dtypes import WORDS
from optgen.errors import LoweringError
from optgen.lower.repair.rewriter import element_of, shape_of

#: The element types that are written over; those of 64 bits are at the boundary alone.
NARROW = {name: word for name, word in WORDS.items() if not name.endswith("64")}

_BITS = {"i1": 1, "i8": 8, "i16": 16, "ui8": 8, "ui16": 16}

#: What only moves numbers, or whose results are as large as its operands at most.
_KEPT = {
    "stablehlo." + name for name in (
        "and", "or", "xor", "maximum", "minimum", "remainder", "sign", "shift_right_arithmetic", "clamp",
        "broadcast", "broadcast_in_dim", "reshape", "transpose", "slice", "dynamic_slice", "dynamic_update_slice",
        "concatenate", "pad", "gather", "reverse", "case", "return", "optimization_barrier", "composite",
    )
} | {"func.func", "func.call", "func.return", "call", "chlo.top_k"}  # fmt: skip
#: What may leave the range: of 32 bits the lower ones are right.
_WRAPPED = {
    "stablehlo." + name
    for name in ("add", "subtract", "multiply", "negate", "abs", "shift_left", "divide", "power", "dot_general",
                 "dot", "convolution", "iota")
}  # fmt: skip
#: What folds many numbers into one, by a region of its own.
_FOLDS = {
    "stablehlo." + name for name in ("reduce", "reduce_window", "scatter", "select_and_scatter", "all_reduce", "map")
}
#: Of truth values: what takes the operation's place.
_LOGICAL = {"stablehlo.add": "stablehlo.or", "stablehlo.multiply": "stablehlo.and"}
_TRUTHS = ("stablehlo.compare", "stablehlo.is_finite", "chlo.is_inf", "chlo.is_pos_inf", "chlo.is_neg_inf")
#: What lies in a word, as it is or written over.
_WORD = ("f32", "i32", "ui32", *NARROW)
#: Regions that return a truth value as such.
_ASKING = ("stablehlo.while", "stablehlo.sort")


def in_words(text: str) -> str:
    """``text`` with integers and truth values of 32 bits in the place of narrower ones; so are arguments and results of
    its functions. Arguments of 64-bit integers are taken as 32 bits and widened: what JAX passes on is the lower half.

    Args:
        text: a StableHLO module.

    Raises:
        LoweringError: for an operation whose meaning with words is not known.
    """
    if not any(f"{lead}{name}>" in text for name in WORDS for lead in ("x", "<")):
        return text
    from iree.compiler import ir

    with ir.Context() as context, ir.Location.unknown():
        module = ir.Module.parse(text, context)
        found: list[tuple[Any, list[str], list[str]]] = []

        def visit(op: Any) -> Any:  # what an operation is, before any is changed
            found.append((op, [element_of(v) for v in op.operands], [element_of(v) for v in op.results]))
            return ir.WalkResult.ADVANCE

        for function in module.body.operations:
            function.operation.walk(visit, ir.WalkOrder.PRE_ORDER)
        writer = _Writer(ir)
        for op, operands, results in found:
            writer.write(op, operands, results)
        for function in module.body.operations:
            _take_halves(ir, function.operation)
        module.operation.verify()
        return str(module.operation.get_asm(enable_debug_info="loc(" in text))


class _Writer:
    """Writes operations over, one after the other."""

    def __init__(self, ir: Any) -> None:
        self.ir = ir

    def write(self, op: Any, operands: Sequence[str], results: Sequence[str]) -> None:
        """Writes one operation over.

        Args:
            op: the operation; what it takes has been written over.
            operands, results: the element types that it took and gave.
        """
        self._widen_blocks(op)
        if op.name == "func.func":
            self._retype(op)
        elif op.name == "stablehlo.return" and op.parent.name in _ASKING and operands == ["i1"]:
            op.operands[0] = self._truth(op, op.operands[0])
        elif not any(name in NARROW for name in (*operands, *results)):
            return
        elif (
            op.name == "stablehlo.select"
            and results[0] in _WORD
            and shape_of(op.operands[0]) == shape_of(op.results[0])
        ):
            self._choose(op)
        elif op.name in ("stablehlo.select", "stablehlo.if"):
            op.operands[0] = self._truth(op, op.operands[0])
            self._widen(op)
        elif op.name in _TRUTHS:
            self._count(op)
        elif op.name == "stablehlo.constant":
            self._constant(op)
        elif op.name in ("stablehlo.convert", "stablehlo.bitcast_convert"):
            self._convert(op, operands[0], results[0])
        elif op.name in ("stablehlo.not", "stablehlo.popcnt", "stablehlo.count_leading_zeros",
                         "stablehlo.shift_right_logical"):  # fmt: skip
            self._bits(op, results[0])
        elif op.name in _LOGICAL and results == ["i1"]:
            kind = self.ir.Type.parse(_wide(op.results[0].type, "i1"))
            made = self._make(op, _LOGICAL[op.name], list(op.operands), kind)
            op.results[0].replace_all_uses_with(made)
            op.erase()
        elif op.name in _FOLDS:
            self._widen(op)
            self._after(op, results)
        elif op.name in _WRAPPED:
            self._widen(op)
            if self._within_fold(op) is None:
                self._after(op, results)
        elif op.name in _KEPT or op.name in _ASKING:
            self._widen(op)
        else:
            element = next(name for name in (*operands, *results) if name in NARROW)
            raise LoweringError(f"'{op.name.partition('.')[2]}' has no form for {element} in words of 32 bits")

    # Types.

    def _widen(self, op: Any) -> None:
        for value in op.results:
            value.set_type(self.ir.Type.parse(_wide(value.type, element_of(value))))

    def _widen_blocks(self, op: Any) -> None:
        for region in op.regions:
            for block in region.blocks:
                for value in block.arguments:
                    value.set_type(self.ir.Type.parse(_wide(value.type, element_of(value))))

    def _retype(self, function: Any) -> None:
        ir = self.ir
        kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
        both = [[ir.Type.parse(_wide_type(str(t))) for t in side] for side in (kind.inputs, kind.results)]
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(*both))

    # What is put in.

    def _make(self, at: Any, name: str, operands: Sequence[Any], result: Any, **attributes: Any) -> Any:
        with self.ir.InsertionPoint(at), at.location:
            return self.ir.Operation.create(name, [result], list(operands), attributes).results[0]

    def _splat(self, at: Any, number: float, like: Any) -> Any:
        ir = self.ir
        kind = ir.RankedTensorType(like)
        element = kind.element_type
        made = ir.FloatAttr.get(element, number) if "f" in str(element) else ir.IntegerAttr.get(element, int(number))
        return self._make(at, "stablehlo.constant", [], like, value=ir.DenseElementsAttr.get_splat(kind, made))

    def _compared(self, at: Any, value: Any, direction: str, other: Any) -> Any:
        ir = self.ir
        how = "FLOAT" if "f" in element_of(value) else "UNSIGNED" if "u" in element_of(value) else "SIGNED"
        truth = ir.RankedTensorType.get(shape_of(value), ir.IntegerType.get_signless(1))
        return self._make(
            at, "stablehlo.compare", [value, other], truth,
            comparison_direction=ir.Attribute.parse(f"#stablehlo<comparison_direction {direction}>"),
            compare_type=ir.Attribute.parse(f"#stablehlo<comparison_type {how}>"),
        )  # fmt: skip

    def _truth(self, at: Any, word: Any) -> Any:
        """0 or 1 as a truth value."""
        return self._compared(at, word, "NE", self._splat(at, 0, word.type))

    def _wrap(self, at: Any, value: Any, element: str) -> Any:
        """A word brought back into the range of a narrower type, by its lower bits."""
        if element == "i1":
            return value
        if element.startswith("u"):
            return self._make(at, "stablehlo.and", [value, self._splat(at, 2 ** _BITS[element] - 1, value.type)],
                              value.type)  # fmt: skip
        by = self._splat(at, 32 - _BITS[element], value.type)
        high = self._make(at, "stablehlo.shift_left", [value, by], value.type)
        return self._make(at, "stablehlo.shift_right_arithmetic", [high, by], value.type)

    def _after(self, op: Any, elements: Sequence[str]) -> None:
        """Brings the results of an operation back into their range, for whatever uses them."""
        for value, element in zip(list(op.results), elements, strict=True):
            if element not in _BITS or element == "i1":
                continue
            uses = [(use.owner, use.operand_number) for use in value.uses]
            if not uses:
                continue
            wrapped = self._wrap(op, value, element)
            op.move_before(_first(value, uses))
            for owner, number in uses:
                owner.operands[number] = wrapped

    @staticmethod
    def _within_fold(op: Any) -> Any:
        """The fold whose only operation this is: its lower bits are right at the end as well."""
        block = op.block
        owner = op.parent
        alone = len(list(block.operations)) == 2 and owner.name in _FOLDS
        return owner if alone and op.name in ("stablehlo.add", "stablehlo.multiply") else None

    # Operations.

    def _choose(self, op: Any) -> None:
        """One of two numbers, by their bits: a comparison that several kernels choose by would be stored as such."""
        kind, result = op.operands[0].type, self.ir.Type.parse(_wide(op.results[0].type, element_of(op.results[0])))
        mask = self._make(op, "stablehlo.negate", [op.operands[0]], kind)
        other = self._make(op, "stablehlo.not", [mask], kind)

        def bits(value: Any, to: Any) -> Any:
            return value if value.type == to else self._make(op, "stablehlo.bitcast_convert", [value], to)

        one, two = (
            self._make(op, "stablehlo.and", [bits(value, kind), by], kind)
            for value, by in ((op.operands[1], mask), (op.operands[2], other))
        )
        made = bits(self._make(op, "stablehlo.or", [one, two], kind), result)
        op.results[0].replace_all_uses_with(made)
        op.erase()

    def _count(self, op: Any) -> None:
        """A truth value as 0 or 1."""
        value = op.results[0]
        uses = [(use.owner, use.operand_number) for use in value.uses]
        kind = self.ir.Type.parse(_wide(value.type, "i1"))
        # Half of 2 or 0: a plain conversion is folded with the comparison that turns it back, and what is then stored
        # between two kernels is the truth value.
        two, none, one = (self._splat(op, n, kind) for n in (2, 0, 1))
        chosen = self._make(op, "stablehlo.select", [value, two, none], kind)
        word = self._make(op, "stablehlo.shift_right_logical", [chosen, one], kind)
        op.move_before(two.owner)
        for owner, number in uses:
            owner.operands[number] = word

    def _constant(self, op: Any) -> None:
        ir, value = self.ir, op.results[0]
        element = element_of(value)
        kind = ir.RankedTensorType(ir.Type.parse(_wide(value.type, element)))
        dense = ir.DenseElementsAttr(op.attributes["value"])
        signed = NARROW[element] == "i32"
        if dense.is_splat:
            number = int(ir.DenseIntElementsAttr(op.attributes["value"])[0]) & (2 ** _BITS[element] - 1)
            if signed and number >> (_BITS[element] - 1):
                number -= 2 ** _BITS[element]
            new = ir.DenseElementsAttr.get_splat(kind, ir.IntegerAttr.get(kind.element_type, number))
        else:
            read = np.array([int(n) for n in ir.DenseIntElementsAttr(op.attributes["value"])], np.int64)
            whole = np.asarray(read, np.int32 if signed else np.uint32).reshape(shape_of(value))
            new = ir.DenseElementsAttr.get(whole, signless=signed, type=None if signed else kind.element_type,
                                           shape=shape_of(value))  # fmt: skip
        made = self._make(op, "stablehlo.constant", [], kind, value=new)
        value.replace_all_uses_with(made)
        op.erase()

    def _convert(self, op: Any, source: str, element: str) -> None:
        value, result = op.operands[0], op.results[0]
        if op.name == "stablehlo.bitcast_convert" and _BITS.get(source) != _BITS.get(element):
            raise LoweringError(f"'bitcast_convert' has no form for {source} as {element} in words of 32 bits")
        kind = self.ir.Type.parse(_wide(result.type, element))
        if element == "i1":
            truth = self._compared(op, value, "NE", self._splat(op, 0, value.type))
            made = self._make(op, "stablehlo.convert", [truth], kind)
        elif element in NARROW and "f" in source:
            made = self._make(op, "stablehlo.convert", [self._saturated(op, value, element)], kind)
        else:
            made = value if value.type == kind else self._make(op, "stablehlo.convert", [value], kind)
            if element in NARROW and source not in ("i1", element):
                made = self._wrap(op, made, element)
        result.replace_all_uses_with(made)
        op.erase()

    def _saturated(self, at: Any, value: Any, element: str) -> Any:
        """A float within the range of an integer, 0 where it is none, as XLA converts it."""
        bits, unsigned = _BITS[element], element.startswith("u")
        low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        edges = [self._splat(at, float(n), value.type) for n in (low, high)]
        within = self._make(at, "stablehlo.clamp", [edges[0], value, edges[1]], value.type)
        number = self._compared(at, value, "EQ", value)
        zero = self._splat(at, 0.0, value.type)
        return self._make(at, "stablehlo.select", [number, within, zero], value.type)

    def _bits(self, op: Any, element: str) -> None:
        """What looks at single bits: above a signed number's own there are copies of its sign."""
        value, kind = op.operands[0], op.operands[0].type
        mask = self._splat(op, 2 ** _BITS[element] - 1, kind)
        if op.name == "stablehlo.not":
            signed = not element.startswith("u") and element != "i1"
            made = self._make(op, op.name, [value], kind) if signed else self._make(
                op, "stablehlo.xor", [value, mask], kind)  # fmt: skip
        else:
            own = self._make(op, "stablehlo.and", [value, mask], kind)
            made = self._make(op, op.name, [own, *list(op.operands)[1:]], kind)
            if op.name == "stablehlo.count_leading_zeros":
                made = self._make(op, "stablehlo.subtract", [made, self._splat(op, 32 - _BITS[element], kind)], kind)
            made = self._wrap(op, made, element)
        op.results[0].replace_all_uses_with(made)
        op.erase()


def _take_halves(ir: Any, function: Any) -> None:
    """Lets a public function take words where it had 64-bit integers."""
    if function.name != "func.func" or str(function.attributes.get("sym_visibility", "")).strip('"') == "private":
        return
    block = function.regions[0].blocks[0]
    for value in block.arguments:
        if (word := WORDS.get(element_of(value))) is None:
            continue
        wide = value.type
        value.set_type(ir.Type.parse(str(wide).replace(element_of(value), word)))
        with ir.InsertionPoint.at_block_begin(block):
            made = ir.Operation.create("stablehlo.convert", results=[wide], operands=[value])
        value.replace_all_uses_except(made.results[0], made)
    results = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value).results
    kind = ir.FunctionType.get([a.type for a in block.arguments], results)
    function.attributes["function_type"] = ir.TypeAttr.get(kind)


def _wide(kind: Any, element: str) -> str:
    text = str(kind)
    return text[: text.rindex(element)] + NARROW[element] + ">" if element in NARROW else text


def _wide_type(text: str) -> str:
    for element, word in NARROW.items():
        for lead in ("x", "<"):
            text = text.replace(f"{lead}{element}>", f"{lead}{word}>")
    return text


def _first(value: Any, old: Sequence[tuple[Any, int]]) -> Any:
    """The operation that uses a value besides those that did."""
    return next(use.owner for use in value.uses if (use.owner, use.operand_number) not in old)
