"""What the rules make of one node of a graph, from the values of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from lipcert.loading.allowance import TooLarge
from lipcert.loading.assembler import Assembler, Variable
from lipcert.loading.comparisons import chosen
from lipcert.loading.fold import FOLDABLE, computed
from lipcert.loading.formulas import Formula, combined
from lipcert.loading.joints import joint_rule
from lipcert.loading.masks import LEFT_OUT, Masked, masked
from lipcert.loading.operator_row import OperatorRow
from lipcert.loading.piecewise import piecewise
from lipcert.loading.ranks import ranked
from lipcert.loading.reasons import CHOICE, COMPARISONS, is_move, reason
from lipcert.loading.reflections import Reflections
from lipcert.loading.rules import FINAL_RULES, RULES, SHAPES, SOFTMAX
from lipcert.loading.value import Call, Condition, Unknown, Unsupported, Value, place, varies
from lipcert.rounding import SINGLE, Arithmetic

PIECEWISE = "piecewise linear"
_AFTER = "after a refused node"


@dataclass(eq=False)
class NodeReader:
    """Reads the nodes of one graph, in order: of opset ``version``, with the head ``final``.

    ``values``: of all names that were read so far; ``own``: the format of the graph's input,
    ``formats``: of every value that varies. ``rows``: what is
    told of every node; ``refused``: refusals by row; ``absorbed``: rows that became part of an
    activation; ``written``: what formulas became that no activation took; ``elsewhere``: products
    of earlier rows that were only written when a later one asked for them. ``stripped``: the head
    that was left out; ``branch``: the first If that is to be taken, and its condition.
    """

    version: int
    final: onnx.NodeProto | None
    own: Arithmetic = SINGLE
    formats: dict[str, Arithmetic] = field(default_factory=dict)
    rows: list[OperatorRow] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    absorbed: set[int] = field(default_factory=set)
    reflections: Reflections = field(default_factory=Reflections)
    written: dict[int, Variable] = field(default_factory=dict)
    elsewhere: int = 0
    stripped: str | None = None
    branch: tuple[onnx.NodeProto, bool] | None = None
    values: dict[str, Value] = field(default_factory=dict)

    def format(self, node: onnx.NodeProto) -> Arithmetic:
        """In which the file computes the node: that of its inputs which vary, all of one type."""
        found = (self.formats.get(n) for n in node.input if varies(self.values.get(n)))
        return next(filter(None, found), self.own)

    def read(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
    ) -> tuple[Sequence[Value], str, bool]:
        """What the node's rule makes of it; if it refuses, what the node may be a part of."""
        inputs = [self.reflections.value(value, assembler) for value in inputs]
        mask = masked(node, inputs, assembler)
        if mask is not None:
            return [mask], "part of a mask", True
        if node.op_type != "Softmax" and any(isinstance(value, Masked) for value in inputs):
            raise Unsupported(LEFT_OUT)
        call = Call(node, self.version, (), assembler)
        if (taken := ranked(call, list(inputs), assembler)) is not None:
            return [taken], "", True
        choice = chosen(node, inputs, assembler)
        if choice is not None:
            return [choice], "part of a choice" if isinstance(choice, Condition) else "", True
        formulas = [value for value in inputs if isinstance(value, Formula)]
        note = _AFTER
        compares = node.op_type in COMPARISONS
        if not formulas and not compares:
            try:
                return *self._ruled(node, inputs, assembler), True
            except Unsupported as refused:
                note = str(refused)
        made = combined(node, inputs, assembler)
        if made is None and (side := self.reflections.chosen(node, inputs)) is not None:
            return [side], "part of a reflection", True
        waiting = frozenset().union(*(formula.rows for formula in formulas))
        match made:
            case Variable():
                self.absorbed |= waiting
                return [made], "", True
            case Formula():
                rows = made.rows | {len(self.rows)}
                waits = replace(made, rows=rows, node=node, operands=tuple(inputs))
                return [waits], note, bool(formulas) or made.compares
        if formulas or compares:
            inputs = [
                self.written_out(value, assembler) if isinstance(value, Formula) else value
                for value in inputs
            ]
            try:
                return *self._ruled(node, inputs, assembler), True
            except Unsupported as refused:
                note = str(refused)
        joined = self._joined(node, inputs, assembler)
        if joined is None:
            raise Unsupported(note)
        return *joined, True

    def _joined(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
    ) -> tuple[Sequence[Value], str] | None:
        """What a node that no other rule takes is as a joint; None where it is none."""
        rule = joint_rule(node, inputs)
        if rule is None:
            return None
        # Of a mask the rule knows what it leaves out.
        inputs = [value.scores if isinstance(value, Masked) else value for value in inputs]
        known = tuple(value for value in inputs if not isinstance(value, Unknown))
        if len(known) < len(inputs):
            return [Unknown(varies=True)] * len(node.output), _AFTER
        call = Call(node, self.version, known, assembler)
        result = rule(call)
        return [result], "; ".join(call.notes)

    def written_out(self, formula: Formula, assembler: Assembler) -> Value:
        """What a formula that is no activation is, as the file has it; Unknown where it is
        refused."""
        if formula.compares:
            return Condition(varies=True)
        key = max(formula.rows)
        if key not in self.written:
            node = formula.node
            assert node is not None
            own, origin = assembler.own, assembler.origin
            first = len(assembler.builder.nodes)
            assembler.own, assembler.origin = self.format(node), place(node)
            try:
                found, note = self._of_formula(formula, node, assembler)
            except (Unsupported, TooLarge) as refused:
                self._refuse(formula, node, str(refused))
                return Unknown(varies=True)
            finally:
                assembler.own, assembler.origin = own, origin
            if not isinstance(found, Variable):
                return Unknown(varies=True)
            self.written[key] = found
            bound = "exact" if note == PIECEWISE else "enclosed"
            products = sum(one.products for one in assembler.builder.nodes[first:])
            self.elsewhere += products
            self.rows[key] = replace(
                self.rows[key], supported=True, note=note, bound=bound, products=products
            )
            self.refused.pop(key, None)
        return self.written[key]

    def _refuse(self, formula: Formula, node: onnx.NodeProto, why: str) -> None:
        """What is wrong is the whole formula, not its parts."""
        for row in formula.rows:
            self.refused.pop(row, None)
        key = max(formula.rows)
        self.rows[key] = replace(self.rows[key], supported=False, note=why)
        self.refused[key] = f"{self.rows[key].title(place(node))}: {why}"

    def _of_formula(
        self, formula: Formula, node: onnx.NodeProto, assembler: Assembler
    ) -> tuple[Value, str]:
        """A piecewise linear function of the formula's base, or what the node's own rule makes of
        its operands."""
        straight = piecewise(formula.polynomial, formula.base, assembler)
        if straight is not None:
            self.absorbed |= formula.rows - {len(self.rows)}
            return straight, PIECEWISE
        inputs = [
            self.written_out(value, assembler) if isinstance(value, Formula) else value
            for value in formula.operands
        ]
        try:
            results, note = self._ruled(node, inputs, assembler)
        except Unsupported:
            joined = self._joined(node, inputs, assembler)
            if joined is None:
                raise
            results, note = joined
        return results[0], note

    def _ruled(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
    ) -> tuple[Sequence[Value], str]:
        kind = _named(node)
        if kind == "If" and isinstance(inputs[0], Unknown) and not inputs[0].varies:
            return [Unknown(varies=True)] * len(node.output), _AFTER
        self._check(node, inputs)
        depending = [varies(value) for value in inputs]
        if not any(depending):
            return self._fold(node, inputs, assembler)
        compared = any(compares(value) for value in inputs)
        if kind in COMPARISONS or (compared and is_move(node)):
            return [Condition(varies=True)], "part of a choice"
        if compared:
            raise Unsupported(CHOICE)
        if kind in ("DequantizeLinear", "Pow") and any(type(value) is Unknown for value in inputs):
            return [Unknown(varies=True)] * len(node.output), _AFTER
        if kind not in RULES:
            raise Unsupported(reason(kind))
        if kind in SOFTMAX and node is not self.final:
            raise Unsupported("only as the last operator, over all classes")
        known = [value for value in inputs if not isinstance(value, Unknown)]
        if len(known) < len(inputs):
            return [Unknown(varies=kind not in SHAPES)] * len(node.output), _AFTER
        formats = tuple(
            self.formats.get(name) if varies(value) else None
            for name, value in zip(node.input, inputs, strict=True)
        )
        call = Call(
            node, self.version, tuple(known), assembler, formats, node is self.final, self.stripped
        )
        results = (FINAL_RULES if node is self.final else RULES)[kind](call)
        if node is self.final:
            self.stripped = kind
        return results if isinstance(results, list) else [results], "; ".join(call.notes)

    def _check(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> None:
        """Raises ``Unsupported`` for a branch, and for an operator of another domain."""
        if node.op_type == "If" and isinstance(inputs[0], Unknown):
            raise Unsupported("its branch depends on the network's input, so that it may jump")
        if node.op_type == "If" and isinstance(inputs[0], np.ndarray) and inputs[0].size == 1:
            if self.branch is None:
                self.branch = node, bool(inputs[0])
            raise Unsupported("its condition is a constant: to be taken")
        if node.domain == "com.microsoft" and node.op_type.startswith("Fused"):
            raise Unsupported(
                "written by onnxruntime's optimiser; give the model as it was before that"
            )
        if node.domain not in ("", "ai.onnx") and _named(node) not in RULES:
            raise Unsupported(f"operators of domain {node.domain!r} are not supported")

    def _fold(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
    ) -> tuple[Sequence[Value], str]:
        if node.op_type not in FOLDABLE or node.domain not in ("", "ai.onnx"):
            raise Unsupported("not supported")
        arrays = [value for value in inputs if value is None or isinstance(value, np.ndarray)]
        if len(arrays) < len(inputs):
            return [Unknown(varies=False)] * len(node.output), _AFTER
        call = Call(node, self.version, tuple(arrays), assembler)
        if "sparse_value" in call.attributes:
            raise Unsupported("attribute sparse_value")
        if node.op_type == "Dropout" and call.has(2) and bool(call.array(2).any()):
            raise Unsupported("training_mode is on; export the model in evaluation mode")
        return (
            computed(node, self.version, arrays, call.attributes, assembler.allowance),
            "constant",
        )


def compares(value: Value | None) -> bool:
    """Whether a value is true or false."""
    return isinstance(value, Condition) or (isinstance(value, Formula) and value.compares)


def _named(node: onnx.NodeProto) -> str:
    """As the rules call its operator."""
    own = node.domain in ("", "ai.onnx")
    return node.op_type if own else f"{node.domain}.{node.op_type}"
