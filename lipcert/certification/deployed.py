"""What the arithmetic of the deployed network can add to its logits, over a whole ball.

The deployed network runs the file's own operators in float32, in any summation order. Its logits
differ from real arithmetic by at most the error that is propagated here through the network as it
was loaded, before any simplification. A certificate needs a margin above the error of its pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds import Centre, Propagation, node_constants, rounding_errors
from lipcert.bounds.boxes import Box
from lipcert.bounds.lipschitz import rows_of
from lipcert.network import Network, segments
from lipcert.network.operators import Shape
from lipcert.rounding import DOUBLE, SINGLE

# Softmax and LogSoftmax keep the order of two logits in float32 unless they are so near that the
# results round to a tie. With the largest logit subtracted, as every runtime does, one of the two
# being the largest: their difference errs by u (m + 2 log K) and the exponentials by a few u each,
# all below this for up to 2^40 classes.
SOFTMAX_TIE = 2.0**-16


@dataclass(frozen=True, eq=False)
class Deployment:
    """The network as loaded; ``covered`` says whether float32 is to be covered, or real numbers.

    ``softmax``: the deployed file ends in a Softmax or LogSoftmax, which was stripped. ``last``:
    the rows that lead from the last sources to the logits, and how well they are known.
    """

    propagation: Propagation
    covered: bool
    softmax: bool
    last: dict[int, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, network: Network, *, covered: bool, softmax: bool) -> Deployment:
        last = {segment.source: rows_of(segment) for segment in segments(network, network.output)}
        propagation = Propagation.of(network, node_constants(network, {}))
        return cls(propagation, covered, softmax, last)

    def centre(self, x: Tensor) -> Centre:
        return self.propagation.centre(x)

    def matches(self, network: Network) -> bool:
        """Whether the activations of a rewritten network are those of the loaded one, in order."""
        own, other = self.propagation.network, network
        return [_activation(own, i) for i in own.activations] == [
            _activation(other, i) for i in other.activations
        ]

    def pair_errors(
        self, centre: Centre, labels: Tensor, eps: Tensor, inputs: Sequence[Box] | None = None
    ) -> Tensor:
        """How far each deployed margin ``f_y − f_j`` can be from the real one, in the whole ball.

        ``(B, K)``. With the errors ``e_s`` of the last sources and the rounding ``r`` of what comes
        after them, ``|w_y − w_j|·e_s + r_y + r_j``: what the classes share cancels.
        ``inputs``: tighter boxes of the activations' inputs, of a network that ``matches``.

        The analysis works on a simplified network, whose coefficients were fused in float64 out of
        the very magnitudes that are summed here; its own deviation is this error with the unit of
        float64 in place of float32's, a few times over. That is charged in either case.
        """
        network = self.propagation.network
        known = None
        if inputs is not None:
            sinks = [network.nodes[i].inputs[0] for i in network.activations]
            known = dict(zip(sinks, inputs, strict=True))
        boxes = self.propagation.boxes(centre, eps, known)
        errors = rounding_errors(network, boxes, SINGLE)
        # The deployed values of the sources, which the last rounding is relative to.
        for s in self.last:
            boxes[s] = (boxes[s][0] - errors[s], boxes[s][1] + errors[s])
        final = rounding_errors(network, boxes, SINGLE, self.last)[-1].flatten(1)
        if self.softmax:
            final = final + SOFTMAX_TIE
        pair = final.gather(1, labels[:, None]) + final
        for s, (rows, noise) in self.last.items():
            error = errors[s].flatten(1)
            shared = (rows[labels][:, None] - rows[None]).abs() + noise[labels][:, None] + noise
            term = (shared * error[:, None]).sum(2)
            pair = pair + torch.where(error.isfinite().all(1)[:, None], term, torch.inf)
        pair = pair * (1 + 2.0**-30)
        fused = 16 * DOUBLE.unit / SINGLE.unit
        return pair * (1 + fused) if self.covered else pair * fused


def _activation(network: Network, node: int) -> tuple[type, Shape]:
    kind = network.nodes[node].kind
    return type(kind), network.nodes[network.nodes[node].inputs[0]].shape
