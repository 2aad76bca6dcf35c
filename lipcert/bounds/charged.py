"""The dual's backward pass with every rounding charged: what a certificate rests on.

Let ``v`` be what the coefficients on an activation's output should be, and ``w`` what was computed
for them since the last activation, ``‖v − w‖₂ ≤ E``. As ``v·Δa ≥ w·Δa − E ‖Δa‖₂``, ``E ‖Δa‖₂`` is
charged there, with the box's ``Δa``, and the pass goes on from ``w`` as if it were exact. So no
error is carried past an activation, where it would grow like a product of norms with the depth; at
the input it costs ``E eps``. What values drift from those of the layers before is charged value by
value. The sums are charged by ``γ`` of their absolute terms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.coupled import layer_multipliers
from lipcert.bounds.objectives import DualVariables
from lipcert.bounds.relaxed import RelaxedState
from lipcert.bounds.reverse import length
from lipcert.bounds.state import Layer, State
from lipcert.bounds.terms import drift_worth, error_worth, least_at_input, rounding_of
from lipcert.bounds.underflow import MOST_OF_JOINTS
from lipcert.network import Network
from lipcert.network.joints import Joint
from lipcert.numbers import OUT64
from lipcert.rounding import gamma

_WithError = tuple[Tensor, Tensor]


class ChargedPass:
    """One pass over a state of N rows, in float64 but for the affine operators.

    ``total`` is the change so far, but for rounding; ``charge`` what rounding, drifts and joints
    take from it; ``steep`` the product of what joints may amplify: ``(N,)`` each.
    """

    def __init__(self, network: Network, state: State, found: DualVariables) -> None:
        self.state, self.found = state, found
        self.unit = network.outward.unit
        self.relaxed = RelaxedState(network, state)
        self._multipliers_at = layer_multipliers(network, state, found)
        eps = state[0].radius
        self.total, self.charge = torch.zeros_like(eps), torch.zeros_like(eps)
        self.steep = torch.ones_like(eps)

    def relax(self, i: int, value: Tensor, error: Tensor) -> _WithError:
        """Past an activation, with the error of what is passed on."""
        layer = self.state[i]
        if self.relaxed.is_kept(i):
            return self._kept(layer, value, error)
        dtype, value, multipliers = value.dtype, value.double(), self._multipliers_at(i)
        slope = self.found.slopes[i] * layer.varying
        passed, gained = self.relaxed.passed(i, value, slope, multipliers)
        self.total, passed = self.total + gained, passed.to(dtype)
        kind = self.relaxed.kind(i)
        self.charge = self.charge + rounding_of(kind, value, error, layer, slope, multipliers)
        # The product with the slope is rounded, and to the network's type.
        error = OUT64.times(length(passed), 4 * self.unit)
        if layer.drift is not None:
            lost = OUT64.times(error, layer.drifted)
            self.charge = OUT64.add(self.charge, drift_worth(passed, layer, OUT64), lost)
        return passed, error

    def _kept(self, layer: Layer, value: Tensor, error: Tensor) -> _WithError:
        """Past an identity, where nothing is relaxed and the error is charged all the same."""
        self.charge = OUT64.add(self.charge, error_worth(error, layer))
        if layer.drift is not None:
            self.charge = OUT64.add(self.charge, drift_worth(value, layer, OUT64))
        return value, torch.zeros_like(error)

    def join(self, i: int, joint: Joint, value: Tensor, error: Tensor) -> list[_WithError]:
        """Past a joint, once for each of its inputs."""
        relaxation, dtype = self.relaxed.joints[i], value.dtype
        line = relaxation.line
        norms = line.steepness(joint.in_shapes, joint.out_shape, value.double())
        self.steep = self.steep * torch.stack(norms).sum(0).clamp(min=1)
        kept, lost = relaxation.relaxed(value.double(), OUT64)
        # An error of the objective meets what goes through the map and what that leaves.
        left = OUT64.times(error, length(relaxation.rest))
        self.charge = OUT64.add(self.charge, lost, left)
        # Of the transpose, as it is computed, and of rounding to the network's type.
        made = OUT64.times(length(value), 4 * self.unit * (line.transposed_terms + 9))
        error, parts = OUT64.add(error, made), line.transpose(kept[:, None])
        pairs = zip(parts, norms, strict=True)
        return [(part[:, 0].to(dtype), OUT64.times(error, norm)) for part, norm in pairs]

    def proven(self, reached: _WithError | None, *, images: bool) -> Tensor:
        """The change that is proven of each objective, from what reached the input: ``(N,)``."""
        # What squares that underflow can cost was bounded for joints that amplify no more.
        charge = torch.where(self.steep <= MOST_OF_JOINTS, self.charge, torch.inf)
        total, ball = self.total, self.state[0]
        if reached is not None:
            rest, error = reached
            least, sizes = least_at_input(rest.double(), ball, images=images)
            total = total + least
            sums = gamma(math.prod(rest.shape[1:]) + 32) * sizes
            charge = charge + ball.radius * error + sums
        summed = OUT64.gamma(4 * len(self.state) + 16) * total.abs()
        return OUT64.below(total, OUT64.up(charge, 8 * (len(self.state) + 4)), summed)
