"""``z`` times an S-curve from 0 to 1: SiLU (Swish), GELU in both forms, Mish and hard swish.

They fall to a minimum before they rise; their slopes leave [0, 1] on both sides. All but hard
swish are concave, convex around 0, concave again. Where a library computes them as written, the
S-curve is off by a few units of roundoff of 1, and ``z`` times that remains where ``σ(z)`` is
all but 0: hence the share of ``|z|`` in ``rounding``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.network.activations.pieces import Jet, Piece, identity
from lipcert.network.activations.smooth import Smooth


class Gated(Smooth):
    """``z S(z)``. Below ``lowest`` it is 0 to the last bit; the limit of infinity times 0."""

    lowest = -1000.0

    @property
    @abstractmethod
    def minimum(self) -> float:
        """Where ``σ`` is smallest."""

    @property
    @abstractmethod
    def inflections(self) -> tuple[float, float]:
        """Between them ``σ`` is convex."""

    @property
    @abstractmethod
    def bends(self) -> tuple[float, float, float]:
        """Where ``|σ''|`` is largest: before, between and after the inflections."""

    @property
    def turns(self) -> Sequence[float]:
        return (self.minimum,)

    def pieces(self) -> Sequence[Piece]:
        first, second = self.inflections
        left, middle, right = self.bends
        return (
            Piece(-math.inf, first, False, left, self.jet),
            Piece(first, second, True, middle, self.jet),
            Piece(second, math.inf, False, right, self.jet),
        )

    def jet(self, z: Tensor) -> Jet:
        return self.product(z.clamp(min=self.lowest))

    @abstractmethod
    def product(self, z: Tensor) -> Jet:
        """The jet, for ``z ≥ lowest``."""

    @property
    def rounding(self) -> tuple[float, float, float]:
        return 4.0, 1.0, 12.0


class Silu(Gated):
    """``z / (1 + exp(−z))``, also called Swish."""

    minimum = -1.2784645427610738
    inflections = (-2.3993572805154677, 2.3993572805154677)
    bends = (-3.4358409935351107, 0.0, 3.4358409935351107)

    def product(self, z: Tensor) -> Jet:
        decay = torch.exp(-z.abs())
        rest = 1 / (1 + decay)
        gate = torch.where(z >= 0, rest, decay * rest)
        slope = decay * rest.square()
        # 1 − 2 gate is −tanh(z/2).
        fall = (1 - decay) * rest * z.abs()
        far = torch.where(slope == 0, 0.0, fall)
        return z * gate, gate + z.clamp(-1e3, 1e3) * slope, slope * (2 - far)


class Gelu(Gated):
    """``z Φ(z)``, Φ the distribution function of the standard normal distribution."""

    minimum = -0.7517915246935645
    inflections = (-math.sqrt(2), math.sqrt(2))
    bends = (-2.0, 0.0, 2.0)

    def product(self, z: Tensor) -> Jet:
        gate = torch.special.erfc(-math.sqrt(0.5) * z) / 2
        near = z.clamp(-1e3, 1e3)
        density = torch.exp(-near.square() / 2) / math.sqrt(2 * math.pi)
        return z * gate, gate + near * density, density * (2 - near.square())


class GeluTanh(Gated):
    """``z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2``, the usual approximation of GELU."""

    minimum = -0.7524614220710163
    inflections = (-1.4185040087908284, 1.4185040087908284)
    bends = (-2.013480734624258, 0.0, 2.013480734624258)

    def product(self, z: Tensor) -> Jet:
        # (1 + tanh w) / 2 is the sigmoid of 2 w.
        near = z.clamp(-1e3, 1e3)
        factor, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
        square = near.square()
        inner = factor * near * (1 + cubic * square)
        first, second = factor * (1 + 3 * cubic * square), 6 * factor * cubic * near
        decay = torch.exp(-inner.abs())
        rest = 1 / (1 + decay)
        gate = torch.where(z >= 0, rest, decay * rest)
        density = decay * rest.square()
        fall = torch.where(z >= 0, decay - 1, 1 - decay) * rest
        slope = gate + near * density * first
        bend = density * (2 * first + near * (fall * first.square() + second))
        return z * gate, slope, bend


class Mish(Gated):
    """``z tanh(log(1 + exp(z)))``."""

    minimum = -1.1924312145154952
    inflections = (-2.256376396360793, 1.4905711794854285)
    bends = (-3.2673378465204046, -0.0879344313149142, 2.1148425630208771)

    def product(self, z: Tensor) -> Jet:
        # tanh(log y) = (y² − 1) / (y² + 1), y = 1 + exp(z).
        near = z.clamp(-1e3, 1e3)
        decay = torch.exp(-near.abs())
        right = z >= 0
        # With t = exp(z): gate = (t² + 2t) / (t² + 2t + 2), multiplied by t⁻² where that is less.
        above = torch.where(right, 1 + 2 * decay, decay * (decay + 2))
        below = torch.where(right, above + 2 * decay.square(), above + 2)
        gate = above / below
        # gate' = 4 t (t + 1) / below², gate'' = gate' (1 + t/(t + 1) − 4 t (t + 1) / below).
        share = torch.where(right, 1 / (1 + decay), decay / (1 + decay))
        rise = torch.where(right, decay.square() * (1 + decay), decay * (1 + decay))
        first = 4 * rise / below.square()
        turn = torch.where(right, 1 + decay, decay * (1 + decay))
        second = first * (1 + share - 4 * turn / below)
        return z * gate, gate + near * first, 2 * first + near * second


class HardSwish(Smooth):
    """``z min(max(z/6 + 1/2, 0), 1)``: 0, a parabola, and ``z``, with kinks at −3 and 3."""

    lipschitz = 1.5
    turns = (-3.0, -1.5)
    kinks = (-3.0, 3.0)

    def value(self, z: Tensor) -> Tensor:
        return torch.where(z <= -3, 0.0, z * (z / 6 + 0.5).clamp(max=1))

    def jet(self, z: Tensor) -> Jet:
        left, right = z <= -3, z >= 3
        slope = torch.where(left, 0.0, torch.where(right, 1.0, z / 3 + 0.5))
        return self.value(z), slope, torch.where(left | right, 0.0, torch.full_like(z, 1 / 3))

    def pieces(self) -> Sequence[Piece]:
        return (
            Piece(-math.inf, -3.0, True, -3.0, _zero, linear=True),
            Piece(-3.0, 3.0, True, 0.0, _parabola),
            Piece(3.0, math.inf, True, 3.0, identity, linear=True),
        )

    @property
    def rounding(self) -> tuple[float, float, float]:
        return 4.0, 1.0, 4.0


def _zero(z: Tensor) -> Jet:
    return (torch.zeros_like(z),) * 3


def _parabola(z: Tensor) -> Jet:
    return z * (z / 6 + 0.5), z / 3 + 0.5, torch.full_like(z, 1 / 3)
