"""The two bounds of the method: the product of norms, and the local one of Huang et al. (2021).

Both read a network as affine segments between activations and bound every margin
``m_j = f_y − f_j`` from below over the ball of radius ``eps``:

    global   m_j(x0) − eps Σ_s L_s ‖c_s‖
    local    m_j(x0) − Σ_s max −c_s·Δa_s  over ‖r‖ ≤ ρ_s, Δa_s = diag(w) r inside its box

where ``c_s`` is the row ``w_y − w_j`` seen from source ``s`` and ``L_s`` the product of norms up
to it. The local radius is a product of local norms: ``ρ_k = Σ_j ‖M_k A_kj diag(w_j)‖ ρ_j``, with
the gains ``w`` and masks ``M`` of the boxes (``network.activations.base``), from ``ρ_0 = eps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Box, Centre
from lipcert.bounds.support import ball_box_support
from lipcert.network import Network, Segment, segments
from lipcert.network.activations import Activation
from lipcert.norms import spectral_norm
from lipcert.norms.scaling import divided, exponents, lifted, product
from lipcert.rounding import FLOAT64, gamma, rounded_up

_EXACT_SIDE = 256


@dataclass(frozen=True, eq=False)
class Weights:
    """What one set of boxes says of every source: gains ``w``, masks ``M`` of the inputs that
    vary, and the box of ``Δa``."""

    gain: dict[int, Tensor]
    varying: dict[int, Tensor]
    change: dict[int, Box]


@dataclass(frozen=True, eq=False)
class Layers:
    """A network as segments: those between its sources, and the rows that lead to the logits.

    Segments and rows are those of ``network.exact``: norms and the last layer are found in float64.
    """

    network: Network
    edges: tuple[Segment, ...]
    last: dict[int, Tensor]
    last_noise: dict[int, Tensor]

    @classmethod
    def of(cls, network: Network) -> Layers:
        exact = network.exact
        inner = [
            segment
            for i in network.sources
            for j in network.nodes[i].inputs
            for segment in segments(exact, j)
        ]
        outer = segments(exact, network.output)
        # The same affine node can feed two activations: its segments are shared.
        unique = {(segment.source, segment.sink): segment for segment in inner}
        return cls(
            network,
            tuple(unique.values()),
            {segment.source: rows_of(segment)[0] for segment in outer},
            {segment.source: rows_of(segment)[1] for segment in outer},
        )

    def last_norm(self, source: int, gain: Tensor) -> Tensor:
        """``‖A_s diag(w)‖₂`` for gains ``(B, n)``: exact where the logits or neurons are few."""
        rows = self.last[source]
        gain = gain.to(rows.dtype)
        if min(rows.shape) > _EXACT_SIDE:
            return product(spectral_norm(rows[None]), gain.amax(1))
        return spectral_norm(rows * gain[:, None])

    def noise_norm(self, source: int) -> Tensor:
        """At least how far a row matrix may be from the truth, by its Frobenius norm, ``(1,)``."""
        noise = self.last_noise[source].flatten()
        by = exponents(noise.max()) if noise.numel() else exponents(noise.new_zeros(()))
        return lifted(divided(noise, by).norm()[None] * (1 + gamma(noise.numel() + 4)), by)

    def forms(self, source: int, labels: Tensor) -> Tensor:
        """``c_s = row_y − row_j`` for every class j: ``(B, K, n)``; 0 at ``j = y``."""
        rows = self.last[source]
        return rows[labels][:, None] - rows[None]


def weights(network: Network, centre: Centre, boxes: list[Box]) -> Weights:
    """The gains and masks of every source, from boxes that hold all its values."""
    gain, unit = {0: torch.ones_like(centre.values[0])}, network.arithmetic.unit
    varying: dict[int, Tensor] = {}
    change: dict[int, Box] = {}
    for i in network.activations:
        node = network.nodes[i]
        assert isinstance(node.kind, Activation)
        before = boxes[node.inputs[0]]
        gain[i] = node.kind.gain(*before)
        varying[i] = node.kind.varying(*before).to(gain[i].dtype)
    for i in network.sources:
        (lower, upper), value, error = boxes[i], centre.values[i], centre.errors[i]
        slack = error + 4 * unit * (value.abs() + lower.abs() + upper.abs())
        change[i] = (lower - value - slack, upper - value + slack)
    return Weights(gain, varying, change)


def local_radii(layers: Layers, norms: Mapping[Edge, Tensor], eps: Tensor) -> dict[int, Tensor]:
    """``ρ_s`` for every source: ``(B,)`` each; ``norms`` holds one local norm a sample and edge."""
    radii = {0: eps}
    for i in layers.network.activations:
        sink = layers.network.nodes[i].inputs[0]
        arriving = [edge for edge in norms if edge[1] == sink]
        total = torch.zeros_like(eps, dtype=torch.float64)
        for edge in arriving:
            total = total + product(norms[edge], radii[edge[0]])
        radii[i] = rounded_up(total * (1 + (len(arriving) + 2) * FLOAT64), eps.dtype)
    return radii


def local_margins(
    layers: Layers,
    centre: Centre,
    labels: Tensor,
    state: Weights,
    radii: Mapping[int, Tensor],
    *,
    cut: bool = True,
) -> Tensor:
    """Lower bounds of the margins: ``(B, K)``; 0 at the label itself.

    ``cut=False`` leaves out the box in the last layer: the plain ``‖c diag(w)‖ ρ``.
    """
    margins = _clean(centre, labels)
    for source in layers.last:
        form = layers.forms(source, labels)
        gain = state.gain[source].flatten(1).to(form.dtype)
        if cut:
            low, high = (side.flatten(1).to(form.dtype) for side in state.change[source])
            live = torch.where(gain > 0, gain, 1) * (1 - 4 * FLOAT64)
            walls = [torch.where(gain > 0, side / live, 0) for side in (low, high)]
            # What the margin can lose: the most of −c·Δa.
            drop = ball_box_support(-form * gain[:, None], walls[0], walls[1], radii[source])
        else:
            drop = (form * gain[:, None]).norm(dim=2) * radii[source][:, None]
            drop = drop * (1 + gamma(form.shape[2] + 8))
        # What the rows' own rounding can add, whatever its direction.
        noise = (gain.square() @ layers.last_noise[source].square().mT).sqrt()
        noise = (noise.gather(1, labels[:, None]) + noise) * radii[source][:, None]
        margins = margins - (drop + noise * (1 + gamma(form.shape[2] + 8))) * (1 + 4 * FLOAT64)
    return margins.scatter(1, labels[:, None], 0)


def global_margins(
    layers: Layers, centre: Centre, labels: Tensor, constants: list[float], eps: Tensor
) -> Tensor:
    """Lower bounds of the margins by the product of norms: ``(B, K)``; 0 at the label itself."""
    margins = _clean(centre, labels)
    for source, rows in layers.last.items():
        size = layers.last_noise[source].norm(dim=1)
        distance = torch.stack([(rows[j] - rows).norm(dim=1) for j in range(len(rows))])
        distance = distance + size[:, None] + size
        distance = distance * (1 + gamma(rows.shape[1] + 8))
        distance.fill_diagonal_(0)
        margins = margins - distance[labels] * (eps * constants[source])[:, None] * (
            1 + 8 * FLOAT64
        )
    return margins


def logit_constant(layers: Layers, state: Weights, growth: Mapping[int, Tensor]) -> Tensor:
    """An upper bound of the local Lipschitz constant of all logits in the ball: ``(B,)``.

    Between any two points ``x, x'`` of the ball ``‖f(x) − f(x')‖₂`` is at most
    ``(Σ_s ‖A_s diag(w_s)‖ ρ_s) ‖x − x'‖₂``, with the ``growth`` ``ρ_s`` ``(B,)`` for each unit of
    the radius: gains hold for any two points, so this constant needs no anchor.
    """
    total = torch.zeros_like(growth[0])
    for source in layers.last:
        gain = state.gain[source].flatten(1).double()
        noise = product(layers.noise_norm(source), gain.amax(1))
        total = total + product(layers.last_norm(source, gain) + noise, growth[source])
    return total * (1 + (len(layers.last) + 6) * FLOAT64)


def rows_of(segment: Segment) -> tuple[Tensor, Tensor]:
    """A segment's rows ``(outputs, n)``, and how far each entry may be from the truth, fused
    coefficients included."""
    magnitudes = segment.rows(magnitude=True).flatten(1)
    return segment.rows().flatten(1), gamma(segment.transposed_terms + 16) * magnitudes


def _clean(centre: Centre, labels: Tensor) -> Tensor:
    logits, errors = centre.logits, centre.logit_errors
    own = labels[:, None]
    margin = logits.gather(1, own) - logits - (errors.gather(1, own) + errors) * (1 + 4 * FLOAT64)
    margin = margin - 2 * FLOAT64 * (logits.gather(1, own).abs() + logits.abs())
    return margin.scatter(1, own, 0)
