"""The network in the type that its bounds are found in."""

from __future__ import annotations

import torch

from lipcert.errors import CannotCertify
from lipcert.network import Network
from lipcert.network.operators import Operator
from lipcert.options import Options


def in_dtype(network: Network, options: Options) -> Network:
    """A network in float64 in the type of the analysis. What that rounds is charged by
    ``bounds.roundoff``; a number that overflows raises ``CannotCertify``."""
    if options.dtype == "float64":
        return network
    narrow = network.to(dtype=torch.float32)
    for before, after in zip(network.nodes, narrow.nodes, strict=True):
        if isinstance(before.kind, Operator) and isinstance(after.kind, Operator):
            for given, kept in (
                (before.kind.entries(), after.kind.entries()),
                (before.kind.bias, after.kind.bias),
            ):
                if given is not None and kept is not None and _overflows(given, kept):
                    raise CannotCertify(
                        f"{before.origin or type(before.kind).__name__}: a weight of "
                        f"{float(given.abs().max()):.3g} overflows float32, in which the analysis "
                        "was to run; choose --dtype float64"
                    )
    return narrow


def _overflows(given: torch.Tensor, kept: torch.Tensor) -> bool:
    return bool((torch.isinf(kept) & torch.isfinite(given)).any())
