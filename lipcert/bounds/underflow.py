"""What numbers too small for an analysis can cost it.

Lengths are roots of sums of squares, and a square underflows long before its root does. With ``F``
the product of norms from the input to a node, ``G`` that from it to the logits, a margin feels at
most ``(1 + F)(1 + G)`` of what is lost at the node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipcert.network import Backward, Network, backward, fold
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.rounding import DOUBLE, Arithmetic

# 2^400 · √n · 2^-511, for every node and a few lengths each, is below this.
_AMPLIFICATION, _UNDERFLOW = 2.0**400, 2.0**-60
# Joints count here with a norm of 1; what they amplify by around a sample may be the rest of it.
_BETWEEN_JOINTS, MOST_OF_JOINTS = 2.0**100, 2.0**300
# Of lengths and products of each node, in float32, where every one counts.
_LENGTHS = 64.0


def underflow(network: Network, norms: Sequence[float], analysis: Arithmetic) -> float:
    """At most this of any margin; ``norms`` has an entry a node.

    In float64 a length is short by at most ``√n 2^-511``. Where a product of norms could pass
    2^400, nothing is known: infinite. In float32 it is ``√n 2^-63``, for every length that there
    is, and for radii up to the input's diameter: the sum of it all.
    """
    nodes = network.nodes
    # The product of norms from the input, summed over all ways.
    before = fold(network, lambda i, parts: norms[i] * sum(parts) if parts else 1.0)
    decay = _Decay(norms, [0.0] * len(nodes))
    backward(network, network.output, 1.0, decay)
    after = decay.after
    products = [
        (1 + sum(before[j] for j in node.inputs)) * (1 + norms[i]) * (1 + after[i])
        for i, node in enumerate(nodes)
    ]
    if analysis == DOUBLE:
        most = _BETWEEN_JOINTS if network.joints else _AMPLIFICATION
        return _UNDERFLOW if all(p <= most for p in products) else math.inf
    sizes = [math.sqrt(node.size) for node in nodes]
    short = _LENGTHS * math.sqrt(analysis.tiny) * (1 + sizes[0])
    lost = short * sum(size * p for size, p in zip(sizes, products, strict=True))
    return lost if lost < math.inf else math.inf


@dataclass(frozen=True)
class _Decay(Backward[float]):
    """The product of norms from each node to the logits, summed over all ways, in ``after``."""

    norms: Sequence[float]
    after: list[float]

    def affine(self, i: int, operator: Operator, value: float) -> float:
        return self.norms[i] * value

    def activation(self, i: int, activation: Activation, value: float) -> float:
        return self.norms[i] * value

    def joint(self, i: int, joint: Joint, value: float) -> list[float]:
        return [self.norms[i] * value] * len(joint.in_shapes)

    def add(self, one: float, other: float) -> float:
        return one + other

    def arrived(self, i: int, value: float) -> float:
        self.after[i] = value
        return value
