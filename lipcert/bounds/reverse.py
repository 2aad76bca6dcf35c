"""Linear objectives of a node's value, carried back to the input: plainly, or with their errors.

Objectives are batches of coefficients ``(N, *shape of the node)``. Through an affine operator they
go by its transpose; what becomes of them at an activation or a joint is for the caller to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network import Backward, Network, backward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.norms import operator_norm
from lipcert.rounding import FLOAT64, gamma

# From coefficients on an activation's output to those on its input.
Cross = Callable[[int, Tensor], Tensor]
# The same, with an upper bound of the Euclidean error of each objective, ``(N,)``.
CrossWithError = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]

# From coefficients on a joint's output to those on each of its inputs; the same with errors.
JointCross = Callable[[int, Joint, Tensor], Sequence[Tensor]]
JointCrossWithError = Callable[[int, Joint, Tensor, Tensor], Sequence[tuple[Tensor, Tensor]]]

# Coefficients of operators that were fused out of several carry a few roundings of their own.
_FUSED = 24


@dataclass(frozen=True)
class Transposes(Backward[Tensor]):
    """Through affine operators by their transposes, through activations as ``cross`` says, through
    joints as ``joints`` says."""

    cross: Cross
    joints: JointCross | None = None

    def affine(self, i: int, operator: Operator, value: Tensor) -> Tensor:
        return operator.transpose(value)

    def activation(self, i: int, activation: Activation, value: Tensor) -> Tensor:
        return self.cross(i, value)

    def joint(self, i: int, joint: Joint, value: Tensor) -> Sequence[Tensor]:
        if self.joints is None:
            return super().joint(i, joint, value)
        return self.joints(i, joint, value)

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


def carry_back(
    network: Network, node: int, forms: Tensor, cross: Cross, joints: JointCross | None = None
) -> Tensor | None:
    """The coefficients on the input that the objectives come down to, or None."""
    return backward(network, node, forms, Transposes(cross, joints))


# Coefficients and an upper bound of the Euclidean error of each objective, ``(N,)`` in float64.
_WithError = tuple[Tensor, Tensor]


class RigorousSweep:
    """``carry_back``, beside an upper bound of the error of each objective.

    A computed ``Aᵀ v`` errs by at most ``γ |A|ᵀ|v|``, hence by ``γ ‖|A|‖₂ ‖v‖₂``; the error that
    ``v`` came with grows by ``‖A‖₂`` at most.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._known: dict[int, tuple[float, float]] = {}

    def __call__(
        self, node: int, forms: Tensor, cross: CrossWithError,
        joints: JointCrossWithError | None = None,
    ) -> _WithError | None:  # fmt: skip
        start = forms, forms.new_zeros(len(forms), dtype=torch.float64)
        return backward(self.network, node, start, _TransposesWithError(self, cross, joints))

    def sizes(self, node: int) -> tuple[float, float]:
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


@dataclass(frozen=True)
class _TransposesWithError(Backward[_WithError]):
    sweep: RigorousSweep
    cross: CrossWithError
    joints: JointCrossWithError | None = None

    def affine(self, i: int, operator: Operator, value: _WithError) -> _WithError:
        coefficients, error = value
        norm, rounding = self.sweep.sizes(i)
        error = (error * (norm + rounding) + rounding * length(coefficients)) * (1 + 8 * FLOAT64)
        return operator.transpose(coefficients), error

    def activation(self, i: int, activation: Activation, value: _WithError) -> _WithError:
        return self.cross(i, *value)

    def joint(self, i: int, joint: Joint, value: _WithError) -> Sequence[_WithError]:
        if self.joints is None:
            return super().joint(i, joint, value)
        return self.joints(i, joint, *value)

    def add(self, one: _WithError, other: _WithError) -> _WithError:
        total = one[0] + other[0]
        made = self.sweep.network.arithmetic.unit * length(total)
        return total, (one[1] + other[1] + made) * (1 + 4 * FLOAT64)


def length(forms: Tensor) -> Tensor:
    """Euclidean lengths, summed in float64 and rounded up: ``(N,)``."""
    flat = forms.flatten(1)
    size: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return size * (1 + gamma(flat.shape[1] + 4))
