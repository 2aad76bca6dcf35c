"""The norms of a run under its options: which kind, with which coins, at what risk."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge
from lipcert.network import Network, Segment
from lipcert.norms import (
    GramMap,
    Norm,
    SegmentNorms,
    WeightedMap,
    lanczos,
    power_iteration,
    randomised_norm,
    schur_bound,
    unit_vectors,
)
from lipcert.options import Options

_POWER_STEPS = 100
_ROUGH_STEPS = 12
EXCESS = 0.01


@dataclass(frozen=True)
class Shares:
    """A union bound over every randomised norm that a run can use.

    Half of ``total`` is for the norms that all samples share, half for the samples' own: each of
    ``samples`` may prepare ``norms`` norms ``preparations`` times.
    """

    total: float
    samples: int
    shared_norms: int
    norms: int
    preparations: int

    @property
    def shared(self) -> float:
        """For one shared norm."""
        return self.total / 2 / max(1, self.shared_norms)

    @property
    def single(self) -> float:
        """For one norm of one sample."""
        return self.total / 2 / max(1, self.samples * self.norms * self.preparations)


class AssuredNorms:
    """Norms over one network: of segments, shared and local, and of chains of ``chain_norms``.

    ``own``: the segments that get norms of each sample's own, all by default; for the others the
    shared norm has to do. ``key``: what all coins follow from. ``share`` is how much of the run's
    failure probability all of them together may spend, ``first_call`` where their coins begin.

    All are found in float64: a randomised norm has to tell components of about δ/√n from rounding,
    which float32 cannot.
    """

    def __init__(
        self,
        edges: tuple[Segment, ...],
        options: Options,
        *,
        key: int,
        samples: int,
        preparations: int,
        own: Collection[Edge] | None = None,
        chain_norms: int = 0,
        share: float = 1.0,
        first_call: int = 0,
    ) -> None:
        certain = options.deterministic or options.estimate
        total = 0.0 if certain else options.failure_probability * share
        self.options, self.key = options, key
        self.first_call, self.chain_norms = first_call, chain_norms
        self.norms = len(edges) + chain_norms
        self.own = {(edge.source, edge.sink) for edge in edges} if own is None else set(own)
        each = len(self.own) + chain_norms
        self.shares = Shares(total, samples, len(edges), each, preparations)
        self.shared: dict[Edge, SegmentNorms] = {
            (edge.source, edge.sink): self._shared(edge, number)
            for number, edge in enumerate(edges)
        }
        self._rough: Network | None = None

    def rough(self, network: Network) -> dict[Edge, SegmentNorms]:
        """The same segments over a copy of the network in lower precision."""
        self._rough = network
        return {
            edge: SegmentNorms(Segment(network, *edge), norm.norm)
            for edge, norm in self.shared.items()
        }

    @property
    def spent_shared(self) -> float:
        """The failure probability of the shared norms."""
        return sum(norm.norm.failure_probability for norm in self.shared.values())

    @property
    def spent_by_preparation(self) -> float:
        """The failure probability of one sample's norms, prepared once."""
        inexact = sum(not self.shared[edge].is_exact for edge in self.own)
        return self.shares.single * (inexact + self.chain_norms)

    def local(
        self,
        norm: SegmentNorms | None,
        mapping: GramMap,
        streams: Tensor,
        preparation: int,
        number: int,
        excess: float = EXCESS,
    ) -> Tensor:
        """A local norm, ``(B,)``, under the options' assurance: of a segment, or of a chain (None).

        A sample's coins are those of (sample, preparation, number), and none is used twice.
        Randomised norms aim ``excess`` above the truth.
        """
        call = self.first_call + (preparation + 1) * self.norms + number
        if norm is not None and not self._has_own(norm):
            assert isinstance(mapping, WeightedMap)
            return norm.from_whole(mapping)
        if self.options.estimate:
            start = unit_vectors(self.key, streams, 4 * call, mapping.support)
            return power_iteration(mapping, start, _POWER_STEPS)
        if self.shares.total == 0:
            if norm is None:
                return schur_bound(mapping)
            assert isinstance(mapping, WeightedMap)
            return norm.deterministic(mapping)
        seed, risk = self.key, self.shares.single
        rough = None if self._rough is None else mapping.over(self._rough)
        if norm is not None:
            assert isinstance(mapping, WeightedMap)
            return norm.randomised(
                mapping, streams=streams, seed=seed, call=call, failure_probability=risk,
                rough=rough, excess=excess,
            )  # fmt: skip
        return randomised_norm(
            mapping, streams=streams, seed=seed, call=call, failure_probability=risk,
            absolute=schur_bound(mapping, steps=2), rough=rough, excess=excess,
        )  # fmt: skip

    def guessed(self, norm: SegmentNorms | None, mapping: GramMap, streams: Tensor) -> Tensor:
        """An estimate of a local norm, for deciding where to look. Its coins are nobody else's."""
        if norm is not None and not self._has_own(norm):
            assert isinstance(mapping, WeightedMap)
            return norm.from_whole(mapping)
        start = unit_vectors(self.key, streams, 2**40, mapping.support)
        return lanczos(mapping, start, _ROUGH_STEPS)

    def _has_own(self, norm: SegmentNorms) -> bool:
        return (norm.segment.source, norm.segment.sink) in self.own

    def _shared(self, edge: Segment, number: int) -> SegmentNorms:
        seed, call = self.key, self.first_call + number
        if self.options.estimate:
            whole = SegmentNorms(edge, Norm(math.inf, "estimate")).unweighted()
            stream = torch.full((1,), -1, device=whole.inner.device)
            start = unit_vectors(seed, stream, 4 * call, whole.support)
            value = float(power_iteration(whole, start, _POWER_STEPS)[0])
            return SegmentNorms(edge, Norm(value, "estimate"))
        share = self.shares.shared if self.shares.total else 0.0
        return SegmentNorms.of(edge, seed=seed, call=call, failure_probability=share)
