"""Linear objectives of a node's value, carried back to the input: plainly, or with their errors.

Objectives are batches of coefficients ``(N, *shape of the node)``. Through an affine operator they
go by its transpose; what becomes of them at an activation or a joint is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network import Backward, Network, backward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.norms import absolute_norm, ready_norm
from lipcert.numbers import OUT64

# From coefficients on an activation's output to those on its input.
Relax = Callable[[int, Tensor], Tensor]
# The same, with an upper bound of the Euclidean error of each objective, ``(N,)``.
RelaxWithError = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]

# From coefficients on a joint's output to those on each of its inputs; the same with errors.
RelaxJoint = Callable[[int, Joint, Tensor], Sequence[Tensor]]
RelaxJointWithError = Callable[[int, Joint, Tensor, Tensor], Sequence[tuple[Tensor, Tensor]]]

# Coefficients of operators that were fused out of several carry a few roundings of their own.
_FUSED = 24


@dataclass(frozen=True)
class Transposes(Backward[Tensor]):
    """The rules lead through affine operators by their transposes, through activations as
    ``relax`` says, and through joints as ``joints`` says."""

    relax: Relax
    joints: RelaxJoint | None = None

    def affine(self, i: int, operator: Operator, value: Tensor) -> Tensor:
        return operator.transpose(value)

    def activation(self, i: int, activation: Activation, value: Tensor) -> Tensor:
        return self.relax(i, value)

    def joint(self, i: int, joint: Joint, value: Tensor) -> Sequence[Tensor]:
        if self.joints is None:
            return super().joint(i, joint, value)
        return self.joints(i, joint, value)

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


def carry_back(
    network: Network,
    node: int,
    objectives: Tensor,
    relax: Relax,
    joints: RelaxJoint | None = None,
) -> Tensor | None:
    """The coefficients on the input that the objectives come down to, or None."""
    return backward(network, node, objectives, Transposes(relax, joints))


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
        self,
        node: int,
        objectives: Tensor,
        relax: RelaxWithError,
        joints: RelaxJointWithError | None = None,
    ) -> _WithError | None:
        start = objectives, objectives.new_zeros(len(objectives), dtype=torch.float64)
        return backward(self.network, node, start, _TransposesWithError(self, relax, joints))

    def sizes(self, node: int) -> tuple[float, float]:
        """``‖A‖₂`` and ``γ ‖|A|‖₂`` of the operator at a node, from above; computed once."""
        if node not in self._known:
            self._known[node] = self._sizes_of(node)
        return self._known[node]

    def _sizes_of(self, node: int) -> tuple[float, float]:
        operator = self.network.nodes[node].kind
        assert isinstance(operator, Operator)
        rounding = self.network.outward.gamma(operator.transposed_terms + _FUSED)
        return ready_norm(operator), OUT64.times(absolute_norm(operator), rounding)


@dataclass(frozen=True)
class _TransposesWithError(Backward[_WithError]):
    sweep: RigorousSweep
    relax: RelaxWithError
    joints: RelaxJointWithError | None = None

    def affine(self, i: int, operator: Operator, value: _WithError) -> _WithError:
        coefficients, error = value
        norm, rounding = self.sweep.sizes(i)
        passed = OUT64.times(error, OUT64.add(norm, rounding))
        made = OUT64.times(length(coefficients), rounding)
        return operator.transpose(coefficients), OUT64.add(passed, made)

    def activation(self, i: int, activation: Activation, value: _WithError) -> _WithError:
        return self.relax(i, *value)

    def joint(self, i: int, joint: Joint, value: _WithError) -> Sequence[_WithError]:
        if self.joints is None:
            return super().joint(i, joint, value)
        return self.joints(i, joint, *value)

    def add(self, one: _WithError, other: _WithError) -> _WithError:
        total = one[0] + other[0]
        made = self.sweep.network.outward.unit * length(total)
        return total, OUT64.add(one[1], other[1], made)


def length(objectives: Tensor) -> Tensor:
    """Sums Euclidean lengths in float64, and rounds them up: ``(N,)``."""
    return OUT64.length(objectives, torch.float64)
