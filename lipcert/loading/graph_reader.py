"""Reads one graph, node by node, for a given number of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading.allowance import NUMBERS, RUNNING, GraphLimits, TooLarge
from lipcert.loading.assembler import Assembler, Variable
from lipcert.loading.batch_axis import COUNTED
from lipcert.loading.comparisons import chosen
from lipcert.loading.ends import final_head, needed, source
from lipcert.loading.fold import FOLDABLE, computed
from lipcert.loading.formulas import Formula, combined
from lipcert.loading.joints import joint_rule, masked_softmax
from lipcert.loading.masks import LEFT_OUT, Masked, masked
from lipcert.loading.onnx_file import one_line, opset, own_numbers, tensor_array
from lipcert.loading.operator_row import OperatorRow
from lipcert.loading.piecewise import piecewise
from lipcert.loading.reasons import CHOICE, COMPARISONS, is_move, reason
from lipcert.loading.reflections import Reflections
from lipcert.loading.rules import FINAL_RULES, RULES, SHAPES, SOFTMAX, Rule
from lipcert.loading.value import (
    Call,
    Condition,
    Unknown,
    Unsupported,
    Value,
    place,
    varies,
)
from lipcert.network import Network, Node
from lipcert.network.activations import Smooth
from lipcert.network.joints import Joint
from lipcert.network.nodes import Kind
from lipcert.rounding import DOUBLE, HALF, SINGLE, Arithmetic, coarsest

# Margins of all pairs of classes come from matrices with a row each: 2 GiB.
MOST_OUTPUTS = 2**14
PIECEWISE = "piecewise linear"


@dataclass(frozen=True)
class ReadGraph:
    """``network`` is None exactly where ``problems`` says why; ``logits`` is the value of the graph
    before the head that was ``stripped``."""

    network: Network | None
    problems: tuple[str, ...]
    operators: tuple[OperatorRow, ...]
    input_name: str
    output_name: str
    double: bool
    any_batch: bool
    stripped: str | None
    logits: str | None = None
    half: bool = False


class GraphReader:
    """One reading of a graph, for ``samples`` at once; ``conditions``: those of the branches that
    were taken in it."""

    def __init__(
        self, model: onnx.ModelProto, name: str, output: str | None, samples: int = 1,
        conditions: Mapping[str, bool] | None = None,
    ) -> None:  # fmt: skip
        self.samples = samples
        # What the conditions of branches are that were taken; the first If that is to be taken.
        self.conditions = conditions or {}
        self.branch: tuple[onnx.NodeProto, bool] | None = None
        self.shape: tuple[int, ...] | None = None
        self.made: Sequence[Node] = ()
        self.graph, self.version, self.name = model.graph, opset(model), name
        self.problems: list[str] = []
        self.rows: list[OperatorRow] = []
        # Refusals by row; rows that became part of an activation; rows that are read otherwise.
        self.refused: dict[int, str] = {}
        self.absorbed: set[int] = set()
        self.reflections = Reflections()
        # Products of earlier rows that were only written when a later one asked for them.
        self.elsewhere = 0
        # What formulas became that no activation took.
        self.written: dict[int, Variable] = {}
        self.values: dict[str, Value] = {}
        self.stripped: str | None = None
        self.own = SINGLE
        # The format of every value that varies; whether it changes on the way; the coarsest from a
        # head that was left out to the output.
        self.formats: dict[str, Arithmetic] = {}
        self.mixed = False
        self.leaves: Arithmetic | None = None
        self.output = self._choose(output)
        self.nodes = needed(self.graph, {self.output, *self.conditions})
        self.uses = Counter(name for node in self.nodes for name in set(node.input))
        self.final = final_head(self.nodes, self.output, self.uses)

    def read(self) -> ReadGraph:
        given = source(self.graph)
        self.own, name = given.own, given.name
        self.problems += [given.problem] if given.problem else []
        self.values |= {other: Unknown(varies=True) for other in given.others}
        constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.shape = shape = given.shape and (self.samples, *given.shape[1:])
        allowance = GraphLimits(
            own_numbers(self.graph),
            numbers=self.samples * NUMBERS,
            running=self.samples * RUNNING,
        )
        try:
            assembler = Assembler(shape or (1,), name, allowance, self.samples)
        except TooLarge as reason:
            raise CannotCertify(f"{self.name}: input {name!r}: {reason}") from reason
        assembler.own = self.formats[name] = self.own
        # What is in 16 bits is charged there whatever is deployed: few run it in more.
        self.mixed = self.own == HALF
        assembler.formats[0] = assembler.own
        self.values[name] = Unknown(varies=True) if shape is None else assembler.input
        for node in self.nodes:
            for used in node.input:
                if used in constants and used not in self.values:
                    self.values[used] = tensor_array(constants[used], self.name)
            self._node(node, assembler)
        for asked, condition in self.conditions.items():
            found = self.values.get(asked)
            if found is None and asked in constants:
                found = tensor_array(constants[asked], self.name)
            if not isinstance(found, np.ndarray) or bool(found) != condition:
                self.problems.append(f"If by {asked!r}: {COUNTED}")
        network, self.made = self._network(assembler), assembler.builder.nodes
        return ReadGraph(
            network,
            tuple(self.problems),
            tuple(self.rows),
            given.name,
            self.output,
            self.own == DOUBLE,
            given.any_batch,
            self.stripped if network is not None else None,
            self.final.input[0] if self.stripped and self.final is not None else None,
            self.own == HALF,
        )

    def _choose(self, output: str | None) -> str:
        names = [value.name for value in self.graph.output]
        if output is not None and output not in names:
            raise UsageError(f"{self.name}: no output {output!r}; it has {', '.join(names)}")
        if output is None and len(names) != 1:
            self.problems.append(
                f"the graph has {len(names)} outputs ({', '.join(names)}): name the logits with "
                "--output-name"
            )
        return output or next(iter(names), "")

    def _node(self, node: onnx.NodeProto, assembler: Assembler) -> None:
        """Sets the node's results; a refusal becomes a problem, and its results unknown."""
        inputs = [self.values.get(name, Unknown(True)) if name else None for name in node.input]
        assembler.origin = place(node)
        assembler.own = before = self._format(node)
        depends = any(varies(value) for value in inputs)
        first, elsewhere = len(assembler.builder.nodes), self.elsewhere
        try:
            results, note, supported = self._results(node, inputs, assembler)
        except (Unsupported, TooLarge) as reason:
            results, note, supported = [], str(reason), False
        except Exception as error:
            results, note, supported = [], f"malformed: {one_line(error)}", False
        for name in [name for name in node.output if name][len(results) :]:
            if supported and (self.uses[name] or name == self.output):
                note, supported, results = f"its output {name!r} is not supported", False, []
        missing = [Unknown(varies=depends)] * (len(node.output) - len(results))
        for name, result in zip(node.output, [*results, *missing], strict=True):
            if name:
                self.values[name], self.formats[name] = result, assembler.own
        self.mixed |= assembler.own != before
        if self.stripped:
            self.leaves = coarsest(self.leaves, assembler.own)
        made = assembler.builder.nodes[first:]
        enclosed = any(_is_enclosed(one.kind) for one in made)
        bound = ("enclosed" if enclosed else "exact") if supported else ""
        products = sum(one.products for one in made) - (self.elsewhere - elsewhere)
        row = OperatorRow.of(node, self.version, supported, note, bound, products)
        if not supported:
            self.refused[len(self.rows)] = f"{row.title(place(node))}: {note}"
        self.rows.append(row)

    def _format(self, node: onnx.NodeProto) -> Arithmetic:
        """In which the file computes the node: that of its inputs which vary, all of one type."""
        found = (self.formats.get(n) for n in node.input if varies(self.values.get(n)))
        return next(filter(None, found), self.own)

    def _results(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
    ) -> tuple[Sequence[Value], str, bool]:
        """What the node's rule makes of it; if it refuses, what the node may be a part of."""
        inputs = [self.reflections.value(value, assembler) for value in inputs]
        mask = masked(node, inputs, assembler)
        if mask is not None:
            return [mask], "part of a mask", True
        if node.op_type != "Softmax" and any(isinstance(value, Masked) for value in inputs):
            raise Unsupported(LEFT_OUT)
        choice = chosen(node, inputs, assembler)
        if choice is not None:
            return [choice], "part of a choice" if isinstance(choice, Condition) else "", True
        formulas = [value for value in inputs if isinstance(value, Formula)]
        note = "after a refused node"
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
                self._written(value, assembler) if isinstance(value, Formula) else value
                for value in inputs
            ]
            try:
                return *self._ruled(node, inputs, assembler), True
            except Unsupported as refused:
                note = str(refused)
        rule = joint_rule(node, inputs)
        if rule is None:
            raise Unsupported(note)
        return *self._joined(rule, node, inputs, assembler), True

    def _joined(
        self, rule: Rule, node: onnx.NodeProto, inputs: Sequence[Value | None],
        assembler: Assembler,
    ) -> tuple[Sequence[Value], str]:  # fmt: skip
        """What the rule of a joint makes of a node that no other rule takes."""
        scores = [value for value in inputs if isinstance(value, Masked)]
        if scores:
            call = Call(node, self.version, (scores[0].scores,), assembler)
            return [masked_softmax(call, scores[0])], "; ".join(call.notes)
        known = tuple(value for value in inputs if not isinstance(value, Unknown))
        if len(known) < len(inputs):
            return [Unknown(varies=True)] * len(node.output), "after a refused node"
        call = Call(node, self.version, known, assembler)
        result = rule(call)
        return result if isinstance(result, list) else [result], "; ".join(call.notes)

    def _written(self, formula: Formula, assembler: Assembler) -> Value:
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
            assembler.own, assembler.origin = self._format(node), place(node)
            try:
                found, note = self._of_formula(formula, node, assembler)
            except (Unsupported, TooLarge) as refused:
                # What is wrong is the whole, not its parts.
                for row in formula.rows:
                    self.refused.pop(row, None)
                self.rows[key] = replace(self.rows[key], supported=False, note=str(refused))
                self.refused[key] = f"{self.rows[key].title(place(node))}: {refused}"
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
            self._written(value, assembler) if isinstance(value, Formula) else value
            for value in formula.operands
        ]
        try:
            results, note = self._ruled(node, inputs, assembler)
        except Unsupported:
            rule = joint_rule(node, inputs)
            if rule is None:
                raise
            results, note = self._joined(rule, node, inputs, assembler)
        return results[0], note

    def _ruled(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
    ) -> tuple[Sequence[Value], str]:
        kind = node.op_type
        if kind == "If" and isinstance(inputs[0], Unknown):
            if not inputs[0].varies:
                return [Unknown(varies=True)] * len(node.output), "after a refused node"
            raise Unsupported("its branch depends on the network's input, so that it may jump")
        if kind == "If" and isinstance(inputs[0], np.ndarray) and inputs[0].size == 1:
            if self.branch is None:
                self.branch = node, bool(inputs[0])
            raise Unsupported("its condition is a constant: to be taken")
        if node.domain not in ("", "ai.onnx"):
            kind = f"{node.domain}.{kind}"
        if node.domain == "com.microsoft" and node.op_type.startswith("Fused"):
            raise Unsupported(
                "written by onnxruntime's optimiser; give the model as it was before that"
            )
        if kind not in RULES and node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"operators of domain {node.domain!r} are not supported")
        depending = [varies(value) for value in inputs]
        if not any(depending):
            return self._fold(node, inputs, assembler)
        compared = any(_compares(value) for value in inputs)
        if kind in COMPARISONS or (compared and is_move(node)):
            return [Condition(varies=True)], "part of a choice"
        if compared:
            raise Unsupported(CHOICE)
        if kind in ("DequantizeLinear", "Pow") and any(type(value) is Unknown for value in inputs):
            return [Unknown(varies=True)] * len(node.output), "after a refused node"
        if kind not in RULES:
            raise Unsupported(reason(kind))
        if kind in SOFTMAX and node is not self.final:
            raise Unsupported("only as the last operator, over all classes")
        known = [value for value in inputs if not isinstance(value, Unknown)]
        if len(known) < len(inputs):
            return [Unknown(varies=kind not in SHAPES)] * len(node.output), "after a refused node"
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

    def _fold(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
    ) -> tuple[Sequence[Value], str]:
        if node.op_type not in FOLDABLE or node.domain not in ("", "ai.onnx"):
            raise Unsupported("not supported")
        arrays = [value for value in inputs if value is None or isinstance(value, np.ndarray)]
        if len(arrays) < len(inputs):
            return [Unknown(varies=False)] * len(node.output), "after a refused node"
        call = Call(node, self.version, tuple(arrays), assembler)
        if "sparse_value" in call.attributes:
            raise Unsupported("attribute sparse_value")
        if node.op_type == "Dropout" and call.has(2) and bool(call.array(2).any()):
            raise Unsupported("training_mode is on; export the model in evaluation mode")
        return (
            computed(node, self.version, arrays, call.attributes, assembler.allowance),
            "constant",
        )

    def _network(self, assembler: Assembler) -> Network | None:
        result = self.values.get(self.output)
        if isinstance(result, Formula):
            result = self._written(result, assembler)
        for row in self.absorbed - set(self.written):
            self.rows[row] = replace(self.rows[row], supported=True, note="part of an activation")
            self.refused.pop(row, None)
        self.problems += self.refused.values()
        if self.problems:
            return None
        if _compares(result):
            self.problems.append(f"output {self.output!r}: is true or false; name the logits")
        elif not isinstance(result, Variable):
            self.problems.append(f"output {self.output!r} does not depend on the input")
        elif result.size < 1:
            self.problems.append(f"output {self.output!r} {list(result.shape)} is empty")
        elif result.size > MOST_OUTPUTS:
            self.problems.append(
                f"output {self.output!r} {list(result.shape)} has {result.size} values, more than "
                f"the {MOST_OUTPUTS} classes that are certified; name the logits"
            )
        else:
            return assembler.network(
                result, mixed=self.mixed, leaves=self.leaves, each=self.stripped == "Sigmoid"
            )
        return None


def _is_enclosed(kind: Kind) -> bool:
    """Whether bounds know a node by an enclosure, and not exactly."""
    return isinstance(kind, Joint | Smooth)


def _compares(value: Value | None) -> bool:
    return isinstance(value, Condition) or (isinstance(value, Formula) and value.compares)
