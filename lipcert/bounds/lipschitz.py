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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge, Scalar
from lipcert.bounds.boxes import Centre
from lipcert.bounds.residual import Tail
from lipcert.bounds.support import ball_box_support
from lipcert.network import Network, Segment, segments
from lipcert.network.activations import Activation
from lipcert.norms import spectral_norm
from lipcert.norms.scaling import divided, exponents, lifted, product
from lipcert.numbers import OUT64, Box, Outward, moved
from lipcert.rounding import gamma, rounded_up

# Exact norms of each sample's own need the eigenvalues of matrices of this side: beyond it they
# cost its cube for each sample, and the product of a shared norm and the largest gain serves.
_EXACT_SIDE = 256


@dataclass(frozen=True, eq=False)
class Layers:
    """A network as segments: those between its sources, and the rows that lead to the logits.

    Segments and rows are those of ``network.exact``: norms and the last layer are found in float64.
    """

    network: Network
    edges: tuple[Segment, ...]
    last: dict[int, Tensor]
    last_noise: dict[int, Tensor]

    @cached_property
    def edges_into(self) -> dict[int, list[Edge]]:
        """The segments that end in each activation's input, by their ends."""
        found: dict[int, list[Edge]] = {}
        for edge in self.edges:
            found.setdefault(edge.sink, []).append((edge.source, edge.sink))
        return found

    @property
    def own(self) -> Outward:
        """The arithmetic of norms and margins."""
        return self.network.exact.outward

    @classmethod
    def of(cls, network: Network) -> Layers:
        exact = network.exact
        inner = [
            segment
            for i in network.sources
            for j in network.nodes[i].inputs
            for segment in segments(exact, j)
        ]
        outer = {s.source: rows_of(s) for s in segments(exact, network.output)}
        # The same affine node can feed two activations: its segments are shared.
        unique = {(segment.source, segment.sink): segment for segment in inner}
        return cls(
            network,
            tuple(unique.values()),
            {source: rows for source, (rows, _) in outer.items()},
            {source: noise for source, (_, noise) in outer.items()},
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
        return lifted(self.own.length(divided(noise, by)[None]), by)

    def objectives(self, source: int, labels: Tensor) -> Tensor:
        """``c_s = row_y − row_j`` for every class j: ``(B, K, n)``; 0 at ``j = y``."""
        rows = self.last[source]
        return rows[labels][:, None] - rows[None]


def gains(network: Network, boxes: list[Box]) -> dict[int, Tensor]:
    """The gain ``w`` of every source, 1 of the input, from boxes that hold all its values."""
    found = {0: torch.ones_like(boxes[0][0])}
    for i in network.activations:
        kind, before = network.nodes[i].kind, boxes[network.nodes[i].inputs[0]]
        assert isinstance(kind, Activation)
        found[i] = kind.gain(*before)
    return found


def masks(network: Network, boxes: list[Box]) -> dict[int, Tensor]:
    """The mask ``M`` of the neurons that vary, by the inputs of activations; where one node feeds
    two activations, what either needs varies."""
    found: dict[int, Tensor] = {}
    for i in network.activations:
        kind, sink = network.nodes[i].kind, network.nodes[i].inputs[0]
        assert isinstance(kind, Activation)
        varying = kind.varying(*boxes[sink]).to(boxes[sink][0].dtype)
        found[sink] = torch.maximum(found[sink], varying) if sink in found else varying
    return found


def change_box(network: Network, centre: Centre, source: int, box: Box) -> Box:
    """The box of ``Δa`` of a source whose values lie in the ``box``."""
    return moved(box, centre.values[source], centre.errors[source], network.outward)


def local_radii(layers: Layers, norms: Mapping[Edge, Tensor], eps: Tensor) -> dict[int, Tensor]:
    """``ρ_s`` for every source: ``(B,)`` each; ``norms`` holds one local norm a sample and edge."""
    radii, own = {0: eps}, layers.own
    for i in layers.network.activations:
        sink = layers.network.nodes[i].inputs[0]
        ways = [own.times(norms[edge], radii[edge[0]]) for edge in norms if edge[1] == sink]
        radii[i] = rounded_up(own.add(*ways), eps.dtype)
    return radii


def local_margins(
    layers: Layers,
    centre: Centre,
    labels: Tensor,
    gain: Mapping[int, Tensor],
    change: Mapping[int, Box],
    radii: Mapping[int, Tensor],
    *,
    cut: bool = True,
) -> Tensor:
    """Lower bounds of the margins: ``(B, K)``; 0 at the label itself; from the gain, the box of
    ``Δa`` and the radius of the ball of every source that leads to the logits.

    ``cut=False`` leaves out the box in the last layer: the plain ``‖c diag(w)‖ ρ``.
    """
    own = layers.own
    margins = _clean(centre, labels, own)
    for source in layers.last:
        objective = layers.objectives(source, labels)
        slope = gain[source].flatten(1).to(objective.dtype)
        if cut:
            low, high = (side.flatten(1).to(objective.dtype) for side in change[source])
            live = torch.where(slope > 0, slope, 1)
            low, high = (torch.where(slope > 0, own.up(t / live, 1), 0) for t in (low, high))
            # What the margin can lose: the most of −c·Δa.
            drop = ball_box_support(-objective * slope[:, None], low, high, radii[source], own)
        else:
            length = own.length((objective * slope[:, None]).flatten(0, 1)).reshape(
                objective.shape[:2]
            )
            drop = own.times(length, radii[source][:, None])
        # A product with the gain is rounded.
        lost = [own.up(drop, 1)]
        if own.unit:
            # What the rows' own rounding can add, whatever its direction.
            squares = own.up(slope.square() @ layers.last_noise[source].square().mT, slope.shape[1])
            noise = own.root(squares + 4 * slope.shape[1] * own.tiny)
            noise = own.add(noise.gather(1, labels[:, None]), noise)
            lost.append(own.times(noise, radii[source][:, None]))
        margins = own.below(margins, *lost)
    return margins.scatter(1, labels[:, None], 0)


def global_margins(
    layers: Layers, centre: Centre, labels: Tensor, constants: Sequence[Scalar], eps: Tensor
) -> Tensor:
    """Lower bounds of the margins by the product of norms: ``(B, K)``; 0 at the label itself."""
    own = layers.own
    margins = _clean(centre, labels, own)
    for source, rows in layers.last.items():
        size = own.length(layers.last_noise[source])
        # A difference is rounded.
        distance = torch.stack([own.up(own.length(row - rows), 1) for row in rows])
        distance = own.add(distance, size[:, None], size)
        radius = own.times(eps, constants[source])[:, None]
        margins = own.below(margins, own.times(distance[labels], radius))
    return margins.scatter(1, labels[:, None], 0)


def tail_margins(tail: Tail, centre: Centre, labels: Tensor, eps: Tensor) -> Tensor:
    """Lower bounds of the margins through the tail alone: ``(B, K)``; 0 at the label itself."""
    own = OUT64
    size = own.length(tail.noise)
    distance = torch.stack([own.up(own.length(row - tail.rows), 1) for row in tail.rows])
    distance = own.add(distance, size[:, None], size)
    lost = own.times(distance[labels], own.times(eps.double(), tail.constant)[:, None])
    margins: Tensor = own.below(_clean(centre, labels, own), lost)
    return margins.scatter(1, labels[:, None], 0)


def logit_constant(
    layers: Layers, gain: Mapping[int, Tensor], growth: Mapping[int, Tensor]
) -> Tensor:
    """An upper bound of the local Lipschitz constant of all logits in the ball: ``(B,)``.

    Between any two points ``x, x'`` of the ball ``‖f(x) − f(x')‖₂`` is at most
    ``(Σ_s ‖A_s diag(w_s)‖ ρ_s) ‖x − x'‖₂``, with the ``growth`` ``ρ_s`` ``(B,)`` for each unit of
    the radius: gains hold for any two points, so this constant needs no anchor.
    """
    own, total = layers.own, torch.zeros_like(growth[0])
    for source in layers.last:
        slope = gain[source].flatten(1).double()
        noise = product(layers.noise_norm(source), slope.amax(1))
        norm = own.add(layers.last_norm(source, slope), noise)
        total = own.add(total, product(norm, growth[source]))
    return total


def rows_of(segment: Segment) -> tuple[Tensor, Tensor]:
    """A segment's rows ``(outputs, n)``, and how far each entry may be from the truth, fused
    coefficients included."""
    rows = segment.rows().flatten(1)
    if segment.network.rough:
        return rows, torch.zeros_like(rows)
    magnitudes = segment.rows(magnitude=True).flatten(1)
    return rows, gamma(segment.transposed_terms + 16) * magnitudes


def _clean(centre: Centre, labels: Tensor, own: Outward) -> Tensor:
    """Lower bounds of the margins at the samples."""
    logits, errors, column = centre.logits, centre.logit_errors, labels[:, None]
    margin = logits.gather(1, column) - logits
    # The difference itself is rounded.
    made = 2 * own.unit * margin.abs()
    return own.below(margin, errors.gather(1, column), errors, made).scatter(1, column, 0)
