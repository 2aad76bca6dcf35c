"""The norms of a run under its options: which kind, with which coins, at what risk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge
from lipcert.network import Network, Segment
from lipcert.norms import Norm, SegmentNorms, WeightedMap, lanczos, power_iteration, unit_vectors
from lipcert.options import Options

_POWER_STEPS = 100
_ROUGH_STEPS = 12


@dataclass(frozen=True)
class Shares:
    """A union bound over every randomised norm that a run can use.

    Half of ``total`` is for the norms that all samples share, half for the samples' own: each of
    ``samples`` may prepare its norms ``preparations`` times over ``edges`` segments.
    """

    total: float
    samples: int
    edges: int
    preparations: int

    @property
    def shared(self) -> float:
        """For one shared norm."""
        return self.total / 2 / max(1, self.edges)

    @property
    def single(self) -> float:
        """For one norm of one sample."""
        return self.total / 2 / max(1, self.samples * self.edges * self.preparations)


class AssuredNorms:
    """Norms of the inner segments of one network: shared ones once, local ones for each sample."""

    def __init__(
        self, edges: tuple[Segment, ...], options: Options, *, samples: int, preparations: int
    ) -> None:
        certain = options.deterministic or options.estimate
        total = 0.0 if certain else options.failure_probability
        self.options = options
        self.shares = Shares(total, samples, len(edges), preparations)
        self.shared: dict[Edge, SegmentNorms] = {
            (edge.source, edge.sink): self._shared(edge, number)
            for number, edge in enumerate(edges)
        }

    def rough(self, network: Network) -> dict[Edge, SegmentNorms]:
        """The same segments over a copy of the network in lower precision."""
        self._rough = {edge: Segment(network, *edge) for edge in self.shared}
        return {
            edge: SegmentNorms(self._rough[edge], norm.norm) for edge, norm in self.shared.items()
        }

    @property
    def spent_shared(self) -> float:
        """The failure probability of the shared norms."""
        return sum(norm.norm.failure_probability for norm in self.shared.values())

    @property
    def spent_by_preparation(self) -> float:
        """The failure probability of one sample's norms, prepared once."""
        return self.shares.single * sum(not norm.is_exact for norm in self.shared.values())

    def local(self, norm: SegmentNorms, mapping: WeightedMap, streams: Tensor, call: int) -> Tensor:
        """A local norm under the options' assurance: ``(B,)``. No ``call`` is used twice."""
        if self.options.estimate:
            start = unit_vectors(self.options.seed, streams, 4 * call, mapping.support)
            return power_iteration(mapping, start, _POWER_STEPS)
        if self.shares.total == 0:
            return norm.deterministic(mapping)
        return norm.randomised(
            mapping,
            streams=streams,
            seed=self.options.seed,
            call=call,
            failure_probability=self.shares.single,
            rough=self._rough[norm.segment.source, norm.segment.sink],
        )

    def guessed(self, mapping: WeightedMap, streams: Tensor) -> Tensor:
        """An estimate of a local norm, for deciding where to look. Its coins are nobody else's."""
        start = unit_vectors(self.options.seed, streams, 2**40, mapping.support)
        return lanczos(mapping, start, _ROUGH_STEPS)

    def _shared(self, edge: Segment, number: int) -> SegmentNorms:
        seed = self.options.seed
        if self.options.estimate:
            whole = SegmentNorms(edge, Norm(math.inf, "estimate")).unweighted()
            stream = torch.full((1,), -1, device=whole.inner.device)
            start = unit_vectors(seed, stream, 4 * number, whole.support)
            value = float(power_iteration(whole, start, _POWER_STEPS)[0])
            return SegmentNorms(edge, Norm(value, "estimate"))
        share = self.shares.shared if self.shares.total else 0.0
        return SegmentNorms.of(edge, seed=seed, call=number, failure_probability=share)
