"""The network: a DAG of affine operators and activations."""

from lipcert.network.graph import Network, NetworkBuilder
from lipcert.network.keep import keep
from lipcert.network.lower import lower
from lipcert.network.nodes import Input, Node, Sum
from lipcert.network.segment import Segment, segments
from lipcert.network.simplify import simplify
from lipcert.network.walk import Backward, Forward, ancestors, backward, fold, forward, held

__all__ = [
    "Backward", "Forward", "Input", "Network", "NetworkBuilder", "Node", "Segment", "Sum",
    "ancestors", "backward", "fold", "forward", "held", "keep", "lower", "segments", "simplify",
]  # fmt: skip
