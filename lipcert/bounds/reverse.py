"""Reverse sweeps: linear forms of a node's value, carried back to what it is computed from.

Forms are batches of coefficients ``(N, *shape of the node)``. Through an affine operator they go by
its transpose; what becomes of them at an activation is for the caller to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.network import Network
from lipcert.network.activations import Activation
from lipcert.network.operators import Operator
from lipcert.norms import operator_norm
from lipcert.rounding import FLOAT64, gamma

# From coefficients on an activation's output to those on its input.
Cross = Callable[[int, Tensor], Tensor]
# The same, with an upper bound of the Euclidean error of each form, ``(N,)``.
CrossWithError = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]

# Coefficients of operators that were fused out of several carry a few roundings of their own.
_FUSED = 24


def carry_back(network: Network, node: int, forms: Tensor, cross: Cross) -> Tensor | None:
    """The coefficients on the input that the forms come down to, or None."""
    pending = {node: forms}
    for i in range(node, 0, -1):
        if i not in pending:
            continue
        kind, value = network.nodes[i].kind, pending.pop(i)
        if isinstance(kind, Activation):
            value = cross(i, value)
        elif isinstance(kind, Operator):
            value = kind.transpose(value)
        for j in network.nodes[i].inputs:
            pending[j] = pending[j] + value if j in pending else value
    return pending.get(0)


class RigorousSweep:
    """``carry_back``, beside an upper bound of the error of each form, ``(N,)`` in float64.

    A computed ``Aᵀ v`` errs by at most ``γ |A|ᵀ|v|``, hence by ``γ ‖|A|‖₂ ‖v‖₂``; the error that
    ``v`` came with grows by ``‖A‖₂`` at most.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._known: dict[int, tuple[float, float]] = {}

    def __call__(
        self, node: int, forms: Tensor, cross: CrossWithError
    ) -> tuple[Tensor, Tensor] | None:
        pending = {node: (forms, forms.new_zeros(len(forms), dtype=torch.float64))}
        for i in range(node, 0, -1):
            if i not in pending:
                continue
            kind, (value, error) = self.network.nodes[i].kind, pending.pop(i)
            if isinstance(kind, Activation):
                value, error = cross(i, value, error)
            elif isinstance(kind, Operator):
                norm, rounding = self._sizes(i)
                error = (error * (norm + rounding) + rounding * length(value)) * (1 + 8 * FLOAT64)
                value = kind.transpose(value)
            for j in self.network.nodes[i].inputs:
                if j in pending:
                    other, extra = pending[j]
                    total = other + value
                    made = self.network.arithmetic.unit * length(total)
                    pending[j] = total, (error + extra + made) * (1 + 4 * FLOAT64)
                else:
                    pending[j] = value, error
        return pending.get(0)

    def _sizes(self, node: int) -> tuple[float, float]:
        """``‖A‖₂`` and ``γ ‖|A|‖₂`` of the operator at a node, from above; computed once."""
        if node not in self._known:
            self._known[node] = self._sizes_of(node)
        return self._known[node]

    def _sizes_of(self, node: int) -> tuple[float, float]:
        operator = self.network.nodes[node].kind
        assert isinstance(operator, Operator)
        like, own = self.network.anchor, self.network.arithmetic
        rows = operator.magnitude(like.new_ones(1, *operator.in_shape)).max()
        columns = operator.transpose_magnitude(like.new_ones(1, *operator.out_shape)).max()
        slack = own.gamma(operator.terms + operator.transposed_terms + 8)
        absolute = math.sqrt(float(rows) * float(columns)) * (1 + slack)
        norm = min(operator_norm(operator), absolute)
        return norm, own.gamma(operator.transposed_terms + _FUSED) * absolute


def length(forms: Tensor) -> Tensor:
    """Euclidean lengths, summed in float64 and rounded up: ``(N,)``."""
    flat = forms.flatten(1)
    size: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return size * (1 + gamma(flat.shape[1] + 4))
