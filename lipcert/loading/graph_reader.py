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
from lipcert.loading.ends import final_head, needed, source
from lipcert.loading.formulas import Formula
from lipcert.loading.node_reader import NodeReader, compares
from lipcert.loading.onnx_file import one_line, opset, own_numbers, tensor_array
from lipcert.loading.operator_row import OperatorRow
from lipcert.loading.value import Unknown, Unsupported, place, varies
from lipcert.network import Network, Node
from lipcert.network.activations import Smooth
from lipcert.network.joints import Joint
from lipcert.network.nodes import Kind
from lipcert.rounding import DOUBLE, HALF, Arithmetic, coarsest

# Margins of all pairs of classes come from matrices with a row each: 2 GiB.
MOST_OUTPUTS = 2**14


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
        # What the conditions of branches are that were taken.
        self.conditions = conditions or {}
        self.shape: tuple[int, ...] | None = None
        self.made: Sequence[Node] = ()
        self.graph, self.version, self.name = model.graph, opset(model), name
        self.problems: list[str] = []
        # Whether the format changes on the way; the coarsest from a head that was left out to the
        # output.
        self.mixed = False
        self.leaves: Arithmetic | None = None
        self.output = self._choose(output)
        self.nodes = needed(self.graph, {self.output, *self.conditions})
        self.uses = Counter(name for node in self.nodes for name in set(node.input))
        self.reader = NodeReader(self.version, final_head(self.nodes, self.output, self.uses))
        self.values = self.reader.values

    @property
    def branch(self) -> tuple[onnx.NodeProto, bool] | None:
        """The first If that is to be taken, and its condition."""
        return self.reader.branch

    @property
    def own(self) -> Arithmetic:
        """The format of the input."""
        return self.reader.own

    def read(self) -> ReadGraph:
        given = source(self.graph)
        self.reader.own, name = given.own, given.name
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
        assembler.own = self.reader.formats[name] = self.own
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
        stripped, final = self.reader.stripped, self.reader.final
        return ReadGraph(
            network,
            tuple(self.problems),
            tuple(self.reader.rows),
            given.name,
            self.output,
            self.own == DOUBLE,
            given.any_batch,
            stripped if network is not None else None,
            final.input[0] if stripped and final is not None else None,
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
        assembler.own = before = self.reader.format(node)
        depends = any(varies(value) for value in inputs)
        first, elsewhere = len(assembler.builder.nodes), self.reader.elsewhere
        try:
            results, note, supported = self.reader.read(node, inputs, assembler)
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
                self.values[name], self.reader.formats[name] = result, assembler.own
        self.mixed |= assembler.own != before
        if self.reader.stripped:
            self.leaves = coarsest(self.leaves, assembler.own)
        made = assembler.builder.nodes[first:]
        enclosed = any(_is_enclosed(one.kind) for one in made)
        bound = ("enclosed" if enclosed else "exact") if supported else ""
        products = sum(one.products for one in made) - (self.reader.elsewhere - elsewhere)
        row = OperatorRow.of(node, self.version, supported, note, bound, products)
        if not supported:
            self.reader.refused[len(self.reader.rows)] = f"{row.title(place(node))}: {note}"
        self.reader.rows.append(row)

    def _network(self, assembler: Assembler) -> Network | None:
        result = self.values.get(self.output)
        if isinstance(result, Formula):
            result = self.reader.written_out(result, assembler)
        rows, refused = self.reader.rows, self.reader.refused
        for row in self.reader.absorbed - set(self.reader.written):
            rows[row] = replace(rows[row], supported=True, note="part of an activation")
            refused.pop(row, None)
        self.problems += refused.values()
        if self.problems:
            return None
        if compares(result):
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
                result, mixed=self.mixed, leaves=self.leaves, each=self.reader.stripped == "Sigmoid"
            )
        return None


def _is_enclosed(kind: Kind) -> bool:
    """Whether bounds know a node by an enclosure, and not exactly."""
    return isinstance(kind, Joint | Smooth)
