"""What flows along the edges of a graph while it is read, and what a rule sees of one node."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.loading.assembler import Assembler, Variable
from lipcert.rounding import Arithmetic

Array = NDArray[Any]


@dataclass(frozen=True)
class Unknown:
    """The result of a node that was refused, or of one that reads such a result.

    ``varies``: whether it depends on the network's input, as far as that can be said.
    """

    varies: bool


@dataclass(frozen=True)
class Condition(Unknown):
    """Whether something holds that depends on the network's input."""


Value = Array | Variable | Unknown


class Unsupported(Exception):
    """A node that cannot be read, with the reason; the reader collects them over the graph."""


def varies(value: Value | None) -> bool:
    """Whether the value depends on the network's input."""
    return isinstance(value, Variable) or (isinstance(value, Unknown) and value.varies)


@dataclass(frozen=True)
class Call:
    """One node with the values of its inputs: what a rule turns into operators.

    ``version`` is the model's opset; ``formats`` are those of the inputs that vary, else None;
    ``final``: the node is the softmax or sigmoid whose result is the output; ``after``: the name of
    the one that it comes after.
    """

    node: onnx.NodeProto
    version: int
    inputs: tuple[Array | Variable | None, ...]
    assembler: Assembler
    formats: tuple[Arithmetic | None, ...] = ()
    final: bool = False
    after: str | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes, with the operator's own defaults for those that are not set."""
        known = self.node.domain in ("", "ai.onnx")
        version, domain = (self.version, "") if known else (1, self.node.domain)
        schema = onnx.defs.get_schema(self.node.op_type, version, domain)
        found = {
            name: attribute.default_value
            for name, attribute in schema.attributes.items()
            if attribute.default_value.type != onnx.AttributeProto.UNDEFINED
        }
        found |= {attribute.name: attribute for attribute in self.node.attribute}
        return {name: _plain(onnx.helper.get_attribute_value(a)) for name, a in found.items()}

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def variable(self, index: int = 0) -> Variable:
        """Input ``index``, which must depend on the network's input."""
        value = self.inputs[index] if self.has(index) else None
        if not isinstance(value, Variable):
            raise Unsupported(f"its input {self._name(index)} must depend on the network's input")
        return value

    def array(self, index: int) -> Array:
        """Input ``index`` as the constant that it must be."""
        value = self.inputs[index] if self.has(index) else None
        if not isinstance(value, np.ndarray):
            raise Unsupported(f"its input {self._name(index)} must be a constant")
        return value

    def constant(self, index: int, *, infinite: bool = False) -> Tensor:
        """Input ``index`` as float64 numbers; NaN is refused, and ±inf unless ``infinite``."""
        array = self.array(index)
        if not np.issubdtype(array.dtype, np.floating):
            raise Unsupported(f"its input {self._name(index)} has type {array.dtype}, not float")
        if np.isnan(array).any() or not (infinite or np.isfinite(array).all()):
            raise Unsupported(f"its input {self._name(index)} has values that are not finite")
        self.assembler.allowance.keep(array.size)
        # In memory of torch's own: where numpy's begins, and with it the order in which a product
        # is summed, differs from process to process.
        return torch.from_numpy(array.astype(np.float64)).clone()

    def optional(self, index: int) -> Tensor | None:
        return self.constant(index) if self.has(index) else None

    def axes(self, index: int = 1, name: str = "axes") -> list[int] | None:
        """Axes from the attribute or, in newer opsets, from input ``index``; None if absent."""
        if self.has(index):
            return [int(axis) for axis in self.array(index).reshape(-1)]
        given = self.attributes.get(name)
        return None if given is None else list(given)

    def _name(self, index: int) -> str:
        named = index < len(self.node.input) and self.node.input[index]
        return repr(self.node.input[index]) if named else str(index + 1)


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def module_path(node: onnx.NodeProto) -> str:
    """The torch module that the node comes from, where the exporter wrote it down."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return ""
            if isinstance(scopes, list) and len(scopes) > 1:
                return str(scopes[-2])
    return ""


def place(node: onnx.NodeProto) -> str:
    """Where a person finds the node: module path, else its name, else what it writes."""
    return module_path(node) or node.name or next(iter(node.output), "")
