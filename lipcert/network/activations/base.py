"""What a bound needs of an activation ``σ``: its value, its image of a box, and its gain.

Boxes are pairs of tensors ``l ≤ u``, ``(B, *shape)``; a NaN in them never shrinks anything.
The gain ``w`` and the mask ``M`` of the inputs that vary state one claim, for any two points
``z, z'`` of the box:

    σ(z) − σ(z') = diag(w) r   for some r with   ‖r‖₂ ≤ ‖M (z − z')‖₂.

So a layer ``A`` after ``σ`` and a layer ``A'`` before it cost ``‖A diag(w)‖₂ · ‖M A'‖₂``: the local
norms of Huang et al. (NeurIPS 2021), where ``w`` and ``M`` are the 0/1 indicators.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lipcert.network.operators.base import Shape, move_tensors

# Backwards through an activation: coefficients ``A``, slopes ``c`` and multipliers ``λ`` become
# coefficients ``A∘c`` on its input; and what is lost, ``(N,)``.
Relaxation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Activation(ABC):
    """A map without parameters of the network's affine kind; shapes are those of one sample."""

    def out_shape(self, in_shape: Shape) -> Shape:
        return in_shape

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """``σ(z)``."""

    @abstractmethod
    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """A box that holds ``σ(z)`` for every ``z`` of the box."""

    @abstractmethod
    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``w ≥ 0``, of the output's shape; 0 where the output is constant over the box."""

    @abstractmethod
    def varying(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The mask ``M`` of the inputs that the outputs depend on, a boolean tensor."""

    @abstractmethod
    def perturbation(self, lower: Tensor, upper: Tensor, error: Tensor) -> Tensor:
        """The most that each output moves when ``z`` of the box moves by ``|Δz| ≤ error``."""

    @abstractmethod
    def pull_back(
        self, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Coefficients ``c`` on the outputs, in ``[low, high]``, become ``c'`` on the inputs.

        For any two points ``z, z'`` of the box, ``c·(σ(z) − σ(z')) = c'·(z − z')`` for some ``c'``
        between what is returned, but for rounding.
        """

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        """The largest gain over all boxes: an upper bound of the L2 Lipschitz constant of σ."""

    @property
    def rounding(self) -> tuple[float, float, float]:
        """``(r, a, s)``: a computed ``σ(z)`` errs by at most ``u (r |σ(z)| + a + s |z|)``, u the
        roundoff."""
        return 0.0, 0.0, 0.0

    def convert(self, change: Callable[[Tensor], Tensor]) -> Self:
        return move_tensors(self, change)


class Elementwise(Activation):
    """One input a neuron: an input varies exactly where its output does.

    What the anchored bounds need beside it is how ``σ`` changes from the value ``z0`` at the
    sample, ``Δσ = σ(z) − σ(z0)`` against ``Δz = z − z0``, over a box ``l ≤ z0 ≤ u``.
    """

    @abstractmethod
    def derivative(self, z: Tensor) -> Tensor:
        """``σ'(z)``, of either side at a kink: where slopes start."""

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The least and largest ``(σ(z) − σ(z')) / (z − z')`` of any two points of the box."""
        gain = self.gain(lower, upper)
        return -gain, gain

    def pull_back(
        self, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        flat, steep = self.slopes(lower, upper)
        ends = torch.stack([low * flat, low * steep, high * flat, high * steep])
        return ends.amin(0), ends.amax(0)

    @abstractmethod
    def secant(self, lower: Tensor, upper: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """``s_min ≤ Δσ/Δz ≤ s_max`` for every ``z`` of the box."""

    @abstractmethod
    def relaxed_minimum(
        self,
        coefficient: Tensor,
        slope: Tensor,
        multiplier: Tensor,
        anchor: Tensor,
        lower: Tensor,
        upper: Tensor,
    ) -> Tensor:
        """``min over the box of A (Δσ − c Δz) + λ Δz²``, or a lower bound of it, for each neuron.

        Coefficient ``A``, slope ``c`` and multiplier ``λ > 0`` broadcast against the box. Exact for
        piecewise linear activations, up to rounding; differentiable in ``A``, ``c`` and ``λ``, and
        for these in the box and the anchor too.
        """

    def relaxation(
        self, anchor: Tensor, lower: Tensor, upper: Tensor, varying: Tensor
    ) -> Relaxation:
        """``A, c, λ ↦ A∘c, Σ_k min over the box of A (Δσ − c Δz) + λ Δz²``, the sum over the
        neurons that are ``varying``, 0 or 1: for many weights over one box."""

        def relax(coefficient: Tensor, slope: Tensor, multiplier: Tensor) -> tuple[Tensor, Tensor]:
            least = self.relaxed_minimum(coefficient, slope, multiplier, anchor, lower, upper)
            return coefficient * slope, torch.where(varying != 0, least, 0).flatten(1).sum(1)

        return relax

    @property
    def rough(self) -> bool:
        """Whether ``rough_relaxation`` is another than ``relaxation``."""
        return False

    def rough_relaxation(
        self, anchor: Tensor, lower: Tensor, upper: Tensor, varying: Tensor
    ) -> Relaxation:
        """About the same, where a search only wants to know where to go."""
        return self.relaxation(anchor, lower, upper, varying)

    def varying(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self.gain(lower, upper) != 0

    def perturbation(self, lower: Tensor, upper: Tensor, error: Tensor) -> Tensor:
        return self.gain(lower - error, upper + error) * error
