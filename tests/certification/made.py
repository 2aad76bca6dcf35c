"""A case small enough to be certified by every method in no time."""

import torch
from laws import seeded, uniform

from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense


def small_case(seed: int) -> tuple[Network, torch.Tensor, torch.Tensor]:
    """Three layers of random weights, and one label that is wrong."""
    builder, generator = NetworkBuilder((1, 6)), seeded(seed)
    node = 0
    for before, after in ((6, 16), (16, 12), (12, 3)):
        weight, bias = uniform((after, before), generator), uniform((after,), generator)
        operator = Dense.of(weight - 0.5, 0.6 * bias - 0.3, (1, before))
        node = builder.operator(operator, node)
        node = builder.activation(relu(), node) if after > 3 else node
    network = builder.build(node).to(dtype=torch.float32).to(dtype=torch.float64)
    x = uniform((6, *network.in_shape), seeded(seed + 1)).float().double()
    labels = network.logits(x).argmax(1)
    labels[0] = (labels[0] + 1) % network.classes
    return network, x, labels
