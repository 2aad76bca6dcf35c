"""ResNets of random weights, of any depth and size, with batch norms as they leave values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from laws import normal, places, uniform
from torch import Generator, Tensor

from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import GroupMax, relu
from lipcert.network.operators import Convolution, Dense, Diagonal, Select

WIDTHS = (64, 128, 256, 512)


class _Builder:
    def __init__(self, side: int, generator: Generator, *, normalised: bool) -> None:
        self.generator = generator
        self.builder = NetworkBuilder((1, 3, side, side))
        seen = uniform((2, 3, side, side), generator)[:, None] if normalised else None
        self.values: dict[int, Tensor] | None = None if seen is None else {0: seen}

    def _put(self, node: int, operator: Convolution | Diagonal | Select | Dense) -> int:
        place = self.builder.operator(operator, node, type(operator).__name__)
        if self.values is not None:
            self.values[place] = operator.forward(self.values[node])
        return place

    def convolution(self, node: int, channels: int, width: int, stride: int = 1) -> int:
        """With a batch norm behind it."""
        shape, pad = self.builder.shape(node), width // 2
        weight = normal((channels, shape[1], width, width), self.generator)
        weight *= math.sqrt(2 / math.prod(weight.shape[1:]))
        place = self._put(
            node,
            Convolution.of(
                weight, None, shape, stride=(stride, stride), padding=((pad, pad), (pad, pad))
            ),
        )
        each = (1, channels, 1, 1)
        scale, mean = torch.ones(each).double(), torch.zeros(each).double()
        if self.values is not None:
            now = self.values[place]
            mean = now.mean((0, 1, 3, 4)).reshape(each)
            scale = 1 / now.std((0, 1, 3, 4)).reshape(each)
        return self._put(place, Diagonal.of(scale, -mean * scale, self.builder.shape(place)))

    def relu(self, node: int) -> int:
        place = self.builder.activation(relu(), node, "relu")
        if self.values is not None:
            self.values[place] = self.values[node].clamp(min=0)
        return place

    def sum(self, parts: Sequence[int]) -> int:
        place = self.builder.sum(parts, "residual")
        if self.values is not None:
            self.values[place] = sum(self.values[part] for part in parts)  # type: ignore[assignment]
        return place

    def pool(self, node: int) -> int:
        """The largest of 2×2."""
        shape = self.builder.shape(node)
        index = places(shape).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        place = self._put(node, Select.of(index, shape))
        found = self.builder.activation(GroupMax(), place, "maximum")
        if self.values is not None:
            self.values[found] = self.values[place].amax(-1)
        return found

    def block(self, node: int, width: int, stride: int, *, bottleneck: bool) -> int:
        if bottleneck:
            inner = self.relu(self.convolution(node, width, 1))
            inner = self.relu(self.convolution(inner, width, 3, stride))
            branch = self.convolution(inner, 4 * width, 1)
        else:
            branch = self.convolution(self.relu(self.convolution(node, width, 3, stride)), width, 3)
        out = self.builder.shape(branch)[1]
        if stride > 1 or self.builder.shape(node)[1] != out:
            node = self.convolution(node, out, 1, stride)
        return self.relu(self.sum([branch, node]))

    def head(self, node: int, classes: int) -> Network:
        shape = self.builder.shape(node)
        mean = torch.full((shape[1], 1, *shape[2:]), 1 / math.prod(shape[2:]), dtype=torch.float64)
        node = self._put(node, Convolution.of(mean, None, shape, groups=shape[1]))
        flat = self.builder.shape(node)
        node = self._put(node, Select.reshape(flat, (1, shape[1])))
        weight = normal((classes, shape[1]), self.generator) / math.sqrt(shape[1])
        return self.builder.build(self._put(node, Dense.of(weight, None, (1, shape[1]))))


def resnet(
    generator: Generator, *, blocks: Sequence[int] = (2, 2, 2, 2), widths: Sequence[int] = WIDTHS,
    side: int = 32, bottleneck: bool = False, classes: int = 10, normalised: bool = True,
) -> Network:  # fmt: skip
    """ResNet-18 at 32×32 by default. Images of more than 64×64 have the stem of ImageNet's, a
    convolution of 7×7 and a pooling. ``normalised``: at two random images, else not at all."""
    grower = _Builder(side, generator, normalised=normalised)
    if side > 64:
        node = grower.pool(grower.relu(grower.convolution(0, widths[0], 7, 2)))
    else:
        node = grower.relu(grower.convolution(0, widths[0], 3))
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(count):
            stride = 2 if stage and not block else 1
            node = grower.block(node, width, stride, bottleneck=bottleneck)
    return grower.head(node, classes)
