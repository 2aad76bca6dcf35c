"""What the arithmetic of the deployed network can add to its logits, over a whole ball.

The deployed network runs the file's own operators in one format: weights, constants and the input
are rounded to it, and every operation's result, or they are kept in a wider one. Sums of products
are accumulated in the format, those of 16 bits in float32, or in a wider one. They may be taken in
any order, with or without fused multiply-add, and a bias, a batch norm or another summand may be
merged into the sum before it. What that adds is found at each node of the network as it was loaded:
of the simplifications only those of values that are moved or clipped come before it, they round
nothing. Where the file itself changes type, that is charged in the narrower one. It goes through a
bound layer by layer (``bounds.noise``), or a margin has to exceed what
all of it can do to the logits of its pair (``bounds.accumulated``, ``bounds.sensitivity``).

Not covered: products by Winograd's or Fourier's method; TF32 and sums kept in 16 bits; a batch
norm's scale found from its statistics in 16 bits; float16 whose subnormals are flushed to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds import Centre, Propagation, node_constants
from lipcert.bounds.accumulated import accumulated
from lipcert.bounds.noise import Noise, some_inputs
from lipcert.bounds.roundoff import Roundoff
from lipcert.bounds.sensitivity import pair_rounding
from lipcert.certification.heads import PLAIN, Head
from lipcert.chunks import at_once, slices
from lipcert.errors import CannotCertify
from lipcert.network import Network, simplify
from lipcert.norms import ready_norm
from lipcert.numbers import OUT64, Box
from lipcert.rounding import DOUBLE, Arithmetic, coarsest

# Softmax and LogSoftmax keep the order of two logits unless they are so near that the results round
# to a tie. With the largest logit subtracted, as every runtime does, one of the two being the
# largest: their difference errs by u (m + 2 log K) and the exponentials by a few u each, all below
# this many units for up to 2^40 classes.
SOFTMAX_TIE = 2.0**8
# A sigmoid of each logit saturates. Where ``a`` and ``b`` are two logits, it is at least
# ``min(a − b, 1) exp(−s) / 11`` larger at ``a``, ``s`` being the smallest size of a number between
# them: its slope is ``exp(−|z|) / (1 + exp(−|z|))²``, and within 1 of that number. Both results err
# by less than 8 units of 1 (libraries flatten the tails, so that these are not relative errors).
SIGMOID_TIE = 11 * 2.0**4
# Pairs of classes whose errors are found at once on a CPU.
_CACHED = 256


@dataclass(frozen=True, eq=False)
class Deployment:
    """The network as loaded, and the arithmetic that it is deployed in; None: real numbers.

    A value that the file itself computes in a coarser format (``Node.format``) rounds in that one,
    also where the rest is real. ``softmax``: the deployed file ends in a Softmax or LogSoftmax, or
    in a Sigmoid of ``each`` logit, which was stripped; ``leaves``: the coarsest format from there
    to the file's output. ``head``: what the margins are for.
    """

    propagation: Propagation
    roundoff: Roundoff
    arithmetic: Arithmetic | None
    softmax: bool
    leaves: Arithmetic | None = None
    each: bool = False
    head: Head = PLAIN

    @classmethod
    def of(
        cls, network: Network, *, arithmetic: Arithmetic | None, softmax: bool,
        analysis: Arithmetic = DOUBLE, head: Head = PLAIN,
    ) -> Deployment:  # fmt: skip
        """``analysis``: the arithmetic of the bounds on margins. Raises ``CannotCertify`` where the
        deployed format does not have the network's own numbers."""
        _check_range(network, arithmetic)
        leaves, each, network = network.leaves, network.each, simplify(network, moves_only=True)
        roundoff = Roundoff.of(network, analysis)
        propagation = Propagation.of(network, node_constants(network, {}, ready_norm))
        return cls(propagation, roundoff, arithmetic, softmax, leaves, each, head)

    def centre(self, x: Tensor) -> Centre:
        return self.propagation.centre(x)

    def noise(self, analysed: Network) -> Noise | None:
        """Its roundings as noise in states of a rewritten network, None where that has other
        activations."""
        own, analysis = self.propagation.network, self.roundoff.analysis
        return Noise.of(own, analysed, self.arithmetic, analysis)

    def always(self, box: Callable[[], Box], errors: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        """What each margin needs beside, ``(B, K)``: for ties of a Softmax or Sigmoid at the end,
        and for what underflows in balls of radius ``eps``, ``(B,)``. ``box``: of the real logits;
        ``errors``: of each, ``(B, K)``."""
        lost = self._lost(eps)[:, None].expand_as(errors)
        if not (self.softmax and (self.each or self.head.inner)):
            return self._tie + lost
        low, high = (side.flatten(1) for side in box())
        low, high = low - errors, high + errors
        sizes, own = torch.maximum(-low, high), labels[:, None]
        if not self.each:
            return self._inner_tie(high.amax(1) - low.gather(1, own)[:, 0])[:, None] + lost
        smallest = torch.minimum(sizes, sizes.gather(1, own))
        # Where 0 lies between both logits, that is the smallest.
        around = (low.gather(1, own) >= 0) & (high <= 0)
        smallest = smallest.masked_fill(around, 0.0)
        unit = (coarsest(self.arithmetic, self.leaves) or DOUBLE).unit
        tie = OUT64.up(SIGMOID_TIE * unit * smallest.exp(), 16)
        return tie.where(tie <= 1, math.inf) + lost

    def _lost(self, eps: Tensor) -> Tensor:
        """What underflows: up to the diameter of [0, 1]^n it is the same for all radii."""
        diameter = math.sqrt(math.prod(self.propagation.network.in_shape))
        return self.roundoff.underflow * (eps / diameter).clamp(min=1.0)

    @cached_property
    def usual(self) -> float:
        """About what rounding does to a margin at any input: the most at a few."""
        x = some_inputs(self.propagation.network)
        first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        error = self.pair_errors(self.centre(x), first, torch.zeros_like(x.flatten(1)[:, 0]))
        return float(error.amax().nan_to_num(math.inf, math.inf))

    def pair_errors(
        self,
        centre: Centre,
        labels: Tensor,
        eps: Tensor,
        margins: Tensor | None = None,
    ) -> Tensor:
        """How far each deployed margin ``f_y − f_j`` can be from the real one in the balls of
        radius ``eps``, ``(B, K)``; infinite where a value could overflow.

        ``margins``: where these exceed what both logits can err by themselves, or one of a sample's
        other than its label's is 0 or less, that is good enough.
        """
        boxes = self.propagation.boxes(centre, eps)
        roundings = accumulated(self.roundoff, centre, eps, boxes, self.arithmetic)
        each = roundings.total[-1].flatten(1)
        always = self.always(lambda: boxes[-1], each, labels, eps)
        pair = OUT64.add(each.gather(1, labels[:, None]), each, always)
        pair = torch.nan_to_num(pair, nan=math.inf, posinf=math.inf)
        if margins is None:
            undecided = torch.ones_like(pair) > 0
        else:
            hopeless = self.head.least(margins, labels) <= 0
            undecided = ~(margins > pair) & ~hopeless[:, None]
            if self.head.inner:
                undecided = self.head.among(undecided, labels, False)
        rows, others = undecided.nonzero().unbind(1)
        values = self.propagation.network.size
        most = at_once(_CACHED * values, rows.device, each=values)
        for some in slices(len(rows), most):
            row, other = rows[some], others[some]
            error = pair_rounding(self.roundoff, roundings, row, labels[row], other)
            pair[row, other] = torch.fmin(OUT64.add(error, always[row, other]), pair[row, other])
        return pair

    @property
    def _tie(self) -> float:
        arithmetic = coarsest(self.arithmetic, self.leaves) or DOUBLE
        # A quotient by the sum of more exponentials would underflow.
        many = self.propagation.network.classes > arithmetic.largest / 8
        tie = math.inf if many else 2 * SOFTMAX_TIE * arithmetic.unit
        return tie if self.softmax else 0.0

    def _inner_tie(self, below: Tensor) -> Tensor:
        """As ``SOFTMAX_TIE`` for labels up to ``below`` under the largest logit, ``(B,)`` both: the
        difference from it rounds too, and exponentials must not underflow."""
        arithmetic = coarsest(self.arithmetic, self.leaves) or DOUBLE
        deepest = math.log(arithmetic.largest / 32 / self.propagation.network.classes)
        tie = self._tie + OUT64.up(8 * arithmetic.unit * below.clamp(min=0).double(), 16)
        return tie.where(below <= deepest, math.inf)


def _check_range(network: Network, deployed: Arithmetic | None) -> None:
    for i, operator in network.operators.items():
        arithmetic = coarsest(deployed, network.nodes[i].format)
        if arithmetic is None:
            continue
        for numbers in (operator.entries(), operator.bias):
            most = 0.0 if numbers is None or not numbers.numel() else float(numbers.abs().max())
            if most * (1 + arithmetic.unit) > arithmetic.largest:
                raise CannotCertify(
                    f"{network.nodes[i].origin or type(operator).__name__}: a weight of {most:.3g} "
                    f"overflows the deployed format, whose largest number is "
                    f"{arithmetic.largest:.6g}; choose a wider --deployed"
                )
