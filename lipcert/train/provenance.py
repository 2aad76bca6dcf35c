"""Which number of a file each number of its network is, found by asking the reader itself.

The file is read three times more with other numbers in its initializers: once each entry holds its
own place, once the places counted from the other end, once a code of its tensor. What comes out of
the reader unchanged, moved, or times a constant, tells where it came from, through any transpose,
slice or sharing; what the reader computes from several numbers does not, and is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from lipcert.loading.activations import FAR
from lipcert.loading.reader import network_of, read
from lipcert.network import Network, fold
from lipcert.network.operators import Convolution, Dense, Diagonal

_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE)
# Places are exact in the type of the smallest format.
_LARGEST = 2**24
# Codes of tensors are far from small multiples of each other, so that a factor is not mistaken.
_FIRST_CODE = 1_000_003
# What is written is so much smaller, exactly: limits beyond ``FAR`` are none to the reader.
_SCALE = 2.0**-24
_TOLERANCE = 1e-7


@dataclass(frozen=True, eq=False)
class Binding:
    """One tensor of one node: ``factor · parameter.flat[index]``, 0 where the index is −1.

    ``index`` has the tensor's shape; None where the parameter's own order, reshaped, is meant.
    """

    node: int
    field: str
    parameter: str
    shape: tuple[int, ...]
    index: Tensor | None
    factor: float

    def value(self, parameter: Tensor) -> Tensor:
        """Differentiable in the parameter."""
        flat = parameter.reshape(-1)
        if self.index is not None:
            if self.index.dim() == 2 and self._is_transpose(parameter):
                flat = parameter.mT
            else:
                padded = torch.nn.functional.pad(flat, (1, 0))
                flat = padded[self.index.reshape(-1) + 1]
        value = flat.reshape(self.shape)
        return value if self.factor == 1 else self.factor * value

    def _is_transpose(self, parameter: Tensor) -> bool:
        """A matrix read by columns, which needs no gathering."""
        assert self.index is not None
        rows, columns = self.shape
        return (
            parameter.dim() == 2
            and tuple(parameter.shape) == (columns, rows)
            and int(self.index[0, -1]) == (columns - 1) * rows
            and int(self.index[-1, 0]) == rows - 1
        )


def parameters(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The file's floating tensors that have axes, by name, but for limits that stand for none."""
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type in _TYPES and tensor.dims and np.prod(tensor.dims) < _LARGEST
    }
    return {name: values for name, values in found.items() if (np.abs(values) < FAR).any()}


def bindings(model: onnx.ModelProto, name: str, network: Network) -> tuple[Binding, ...]:
    """Of every tensor of ``network``, which is ``model`` as read, that holds the file's numbers.

    Normalisation before the first layer is left alone.
    """
    tensors = parameters(model)
    names = list(tensors)
    readings = []
    for fill in (
        lambda k, size: np.arange(1, size + 1),
        lambda k, size: np.arange(size, 0, -1),
        lambda k, size: np.full(size, _FIRST_CODE + k),
    ):
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        for tensor in probe.graph.initializer:
            if tensor.name in tensors:
                old = tensors[tensor.name]
                value = _SCALE * fill(names.index(tensor.name), old.size).reshape(old.shape)
                tensor.CopyFrom(numpy_helper.from_array(value.astype(old.dtype), tensor.name))
        readings.append(network_of(read(probe, name), name))
    if any(_outline(reading) != _outline(network) for reading in readings):
        return ()
    found = []
    for i in _after_normalisation(network):
        kind = network.nodes[i].kind
        for field in fields(kind):
            if isinstance(getattr(kind, field.name), Tensor) and field.name != "index":
                values = [getattr(reading.nodes[i].kind, field.name) for reading in readings]
                binding = _binding(i, field.name, values, names, tensors)
                if binding is not None:
                    found.append(binding)
    return tuple(found)


def _after_normalisation(network: Network) -> list[int]:
    """Operators and activations but those that scale and shift the input itself."""

    def layered(i: int, parts: list[bool]) -> bool:
        return any(parts) or isinstance(network.nodes[i].kind, Dense | Convolution)

    behind = fold(network, layered)
    chosen = sorted((*network.operators, *network.activations))
    return [i for i in chosen if behind[i] or not isinstance(network.nodes[i].kind, Diagonal)]


def _binding(
    node: int,
    field: str,
    values: list[Tensor],
    names: list[str],
    tensors: dict[str, np.ndarray],
) -> Binding | None:
    place, mirrored, owner = (value / _SCALE for value in values)
    shape = tuple(place.shape)
    if {tuple(value.shape) for value in values} != {shape} or not place.numel():
        return None
    zero = (place == 0) & (mirrored == 0) & (owner == 0)
    codes = torch.unique(owner[~zero])
    if len(codes) != 1:
        return None
    for number, name in enumerate(names):
        factor, size = float(codes[0]) / (_FIRST_CODE + number), tensors[name].size
        index = (place / factor).round()
        moved = (index * factor - place).abs() <= _TOLERANCE * place.abs()
        agree = (index >= 1) & (index <= size) & moved
        ends = ((place + mirrored) / factor - (size + 1)).abs() <= _TOLERANCE * size
        if bool((agree & ends | zero).all()):
            index = torch.where(zero, -1, index.long() - 1)
            plain = index.numel() == size and torch.equal(index.reshape(-1), torch.arange(size))
            return Binding(node, field, name, shape, None if plain else index, factor)
    return None


def _outline(network: Network) -> list[tuple[object, ...]]:
    return [(type(node.kind), node.inputs, node.shape) for node in network.nodes]
