"""The network: a DAG of affine operators and activations."""

from lipcert.network.graph import Input, Network, NetworkBuilder, Node, Sum
from lipcert.network.lower import lower
from lipcert.network.segment import Segment, segments
from lipcert.network.simplify import simplify

__all__ = [
    "Input", "Network", "NetworkBuilder", "Node", "Segment", "Sum", "lower", "segments", "simplify",
]  # fmt: skip
