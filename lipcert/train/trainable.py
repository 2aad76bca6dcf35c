"""A network whose tensors are the parameters of its file.

Every step builds the network anew from the parameters: the same frozen operators that are
certified, with tensors that autograd follows back. A parameter that the file uses twice is one
parameter here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading.reader import network_of, read
from lipcert.network import Network, Node, simplify
from lipcert.network.activations import Activation, Clip
from lipcert.network.operators import Convolution, Dense, Operator
from lipcert.train.provenance import bindings, parameters

# Puts what the model expects of its input in front of its network.
PreprocessingFront = Callable[[Network], Network]


class Trainable(nn.Module):
    """The parameters of one ONNX graph, and the network that they make.

    ``names[k]`` is the file's name of the k-th parameter. ``model`` holds everything else of the
    file; preprocessing is in front of the network and not in ``model``. ``stripped`` names the
    head that the network leaves out of what the file puts into ``output_name``.
    """

    def __init__(self, model: onnx.ModelProto, name: str, preprocessed: PreprocessingFront) -> None:
        super().__init__()
        self.model, self.name = model, name
        reading = read(model, name)
        bare, self.reads_double = network_of(reading, name), reading.double
        self.stripped, self.output_name = reading.stripped, reading.output_name
        found = bindings(model, name, bare)
        tensors = parameters(model)
        self.names = tuple(dict.fromkeys(binding.parameter for binding in found))
        if not self.names:
            raise CannotCertify(f"{name}: holds no weights that could be trained")
        whole = preprocessed(bare)
        # The node that holds the file's own input, after the preprocessing.
        self.input = shift = len(whole.nodes) - len(bare.nodes)
        self.template = whole.to(dtype=torch.float32)
        self.bindings = tuple(replace(binding, node=binding.node + shift) for binding in found)
        self.tensors = nn.ParameterList(
            nn.Parameter(torch.from_numpy(tensors[name].astype(np.float32))) for name in self.names
        )

    def network(self) -> Network:
        """The network of pixels with the parameters of now, simplified; differentiable."""
        return simplify(self._with_parameters())

    def _with_parameters(self) -> Network:
        by_name = dict(zip(self.names, self.tensors, strict=True))
        changed: dict[int, dict[str, Tensor]] = {}
        for binding in self.bindings:
            value = binding.value(by_name[binding.parameter])
            changed.setdefault(binding.node, {})[binding.field] = value
        nodes = tuple(
            replace(node, kind=replace(node.kind, **changed[i])) if i in changed else node  # type: ignore[arg-type]
            for i, node in enumerate(self.template.nodes)
        )
        return Network(nodes)

    @torch.no_grad()
    def settle(self) -> None:
        """The network that everything starts from, ``template``, takes the parameters of now."""
        nodes = (
            replace(node, kind=node.kind.convert(torch.clone))
            if isinstance(node.kind, Operator | Activation)
            else node
            for node in self._with_parameters().nodes
        )
        self.template = Network(tuple(nodes))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network().logits(pixels)

    @torch.no_grad()
    def input_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the file itself is given for these pixels, ``(B, 1, …)``, and the logits that it
        makes of them, before a head that was ``stripped``."""
        network = self._with_parameters()
        values = network.values(pixels)
        return values[self.input], values[-1].flatten(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The frozen tensors go where the parameters go; what names places keeps its type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.tensors[0].device
        self.template = self.template.to(device=device)
        self.bindings = tuple(
            replace(b, index=None if b.index is None else b.index.to(device)) for b in self.bindings
        )
        return self

    def features(self, pixels: Tensor) -> Tensor:
        """As ``features_of`` has them, of the file's own layers; differentiable."""
        network = self._with_parameters()
        return features_of(network, network.values(pixels))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Tensors of the file that are used as they are."""
        return tuple(name for name in parameters(self.model) if name not in self.names)

    @torch.no_grad()
    def project(self) -> None:
        """An upper threshold below the lower limit would make a constant of a neuron for good."""
        by_name = dict(zip(self.names, self.tensors, strict=True))
        for binding in self.bindings:
            kind = self.template.nodes[binding.node].kind
            before = self.template.nodes[self.template.nodes[binding.node].inputs[0]].kind
            if isinstance(kind, Clip) and binding.field == "upper" and isinstance(before, Clip):
                floor = 0.0 if before.lower is None else float(before.lower.min())
                by_name[binding.parameter].clamp_(min=floor)

    def weights(self) -> dict[str, Tensor]:
        """A copy of every parameter, by the file's name."""
        return {n: t.detach().cpu().clone() for n, t in zip(self.names, self.tensors, strict=True)}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in zip(self.names, self.tensors, strict=True):
            tensor.copy_(weights[name])

    def exported(self, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
        """The file's graph with these parameters in the place of its own."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                dtype = numpy_helper.to_array(tensor).dtype
                value = weights[tensor.name].numpy().astype(dtype)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return model


def is_layer(node: Node) -> bool:
    """Whether a node is a layer with a matrix of weights."""
    return isinstance(node.kind, Dense | Convolution)


def features_of(network: Network, values: Sequence[Tensor]) -> Tensor:
    """What the last layer of a network is given, ``(B, n)``, of the ``values`` of all nodes.

    Raises ``UsageError`` where no activation lies before it, so that there are no features.
    """
    last = max((i for i, node in enumerate(network.nodes) if is_layer(node)), default=0)
    if not any(i < last for i in network.activations):
        raise UsageError(
            "--distil-features: the model has no activation in front of its last layer, and so no "
            "features to keep to; leave it out"
        )
    return values[network.nodes[last].inputs[0]].flatten(1)
