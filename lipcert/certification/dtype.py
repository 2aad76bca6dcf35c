"""The network in the type that its bounds are found in."""

from __future__ import annotations

from dataclasses import fields

import torch

from lipcert.errors import CannotCertify
from lipcert.network import Network, Node
from lipcert.network.activations import Activation
from lipcert.network.operators import Operator
from lipcert.options import Options


def in_dtype(network: Network, options: Options) -> Network:
    """A network in float64 in the type of the analysis. What that rounds is charged by
    ``bounds.roundoff``; a number that overflows raises ``CannotCertify``."""
    if options.dtype == "float64":
        return network
    narrow = network.to(dtype=torch.float32)
    for before, after in zip(network.nodes, narrow.nodes, strict=True):
        for given, kept in zip(_numbers(before), _numbers(after), strict=True):
            if _overflows(given, kept):
                raise CannotCertify(
                    f"{before.origin or type(before.kind).__name__}: a weight, limit or slope of "
                    f"{float(given.abs().max()):.3g} overflows float32, in which the analysis "
                    "was to run; choose --dtype float64"
                )
    return narrow


def _numbers(node: Node) -> list[torch.Tensor]:
    """What its operator or activation holds, but for places."""
    if not isinstance(node.kind, Operator | Activation):
        return []
    held = (getattr(node.kind, field.name) for field in fields(node.kind))
    return [
        value for value in held if isinstance(value, torch.Tensor) and value.is_floating_point()
    ]


def _overflows(given: torch.Tensor, kept: torch.Tensor) -> bool:
    return bool((torch.isinf(kept) & torch.isfinite(given)).any())
