"""The norms of a run under its options: which kind they are of, and what coins prove them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge
from lipcert.network import Network, Segment
from lipcert.norms import (
    Allowance,
    Budget,
    GramMap,
    Norm,
    Preparation,
    SegmentNorms,
    WeightedMap,
    lanczos,
    power_iteration,
    randomised_norm,
    schur_bound,
    stretched,
)
from lipcert.options import Options
from lipcert.rounding import column

# Of a power iteration, for `--norms estimate`, which is not proven.
_POWER_STEPS = 100
# Of Lanczos, for the norms of a guess, which misses where they are too small; no proof rests on
# them.
_ROUGH_STEPS = 12
# Power steps towards what a whole segment stretches most, once for all samples.
_STRETCHING = 20
# How far, relatively, a randomised norm may lie above what its probes saw: a smaller excess takes
# more steps, in the inverse of its square root, and what it gains a radius is at most this share.
EXCESS = 0.01


class AssuredNorms:
    """Norms over one network: of segments, shared and local, and of chains of ``chain_norms``.

    ``own``: the segments that get norms of each sample's own, all by default; for the others the
    shared norm has to do. Each sample may prepare its own so many times. ``part`` is how much of
    the ``budget``'s failure probability all of them together may spend. ``guide``: a copy of the
    network in lower precision, where randomised norms choose their scale.

    A shared norm is found when it is first asked for: its coins are those of its number, whatever
    others were asked for before, and count as spent from the beginning.

    All are found in float64: a randomised norm has to tell components of about δ/√n from rounding,
    which float32 cannot.
    """

    def __init__(
        self,
        edges: tuple[Segment, ...],
        options: Options,
        budget: Budget,
        *,
        preparations: int,
        own: Collection[Edge] | None = None,
        chain_norms: int = 0,
        part: float = 1.0,
        guide: Network | None = None,
    ) -> None:
        self.options, self.budget, self.guide = options, budget, guide
        self.own = {(edge.source, edge.sink) for edge in edges} if own is None else set(own)
        bare = [SegmentNorms(edge, Norm(math.inf, "unknown")) for edge in edges]
        inexact = sum(not norm.is_exact for norm in bare if self._has_own(norm))
        # By the edge, what its whole segment stretches most, about; for guesses.
        self._stretched: dict[Edge, Tensor] = {}
        self.certain = options.deterministic or options.estimate
        self.account = budget.account(
            0.0 if self.certain else part,
            preparations=preparations,
            draws=inexact + chain_norms,
            shared_draws=sum(norm.takes_coins for norm in bare),
        )
        coins = budget.shared(self.account)
        self.shared: Mapping[Edge, SegmentNorms] = _Asked(self, bare, coins)

    def shared_over(self, network: Network) -> dict[Edge, SegmentNorms]:
        """Gives the shared norms to the segments of a copy of the network in lower precision."""
        return {
            edge: SegmentNorms(Segment(network, *edge), norm.norm)
            for edge, norm in self.shared.items()
        }

    def local(
        self,
        norm: SegmentNorms | None,
        mapping: GramMap,
        preparation: Preparation,
        number: int,
        excess: float = EXCESS,
    ) -> Tensor:
        """A local norm, ``(B,)``, under the options' assurance: of a segment, or of a chain (None).

        ``number`` is the norm's own in the ``preparation``. Randomised norms aim ``excess`` above
        the truth.
        """
        if norm is not None and not self._has_own(norm):
            assert isinstance(mapping, WeightedMap)
            return norm.from_whole(mapping)
        if self.options.estimate:
            start = preparation.guesses.start(mapping.support, number)
            return power_iteration(mapping, start, _POWER_STEPS)
        if norm is None:
            if self.certain:
                return schur_bound(mapping)
            return randomised_norm(
                mapping, preparation.norm(number), absolute=schur_bound(mapping, steps=2),
                rough=self._in_less(mapping), excess=excess,
            )  # fmt: skip
        assert isinstance(mapping, WeightedMap)
        if self.certain or norm.is_exact:
            return norm.deterministic(mapping)
        return norm.randomised(
            mapping, preparation.norm(number), rough=self._in_less(mapping), excess=excess
        )

    def _in_less(self, mapping: GramMap) -> GramMap | None:
        """Gives the map in lower precision, where there is a network for it."""
        return None if self.guide is None else mapping.over(self.guide)

    def guessed(self, norm: SegmentNorms | None, mapping: GramMap, allowance: Allowance) -> Tensor:
        """Estimates a local norm, to decide where to look."""
        if norm is not None and not self._has_own(norm):
            assert isinstance(mapping, WeightedMap)
            return norm.from_whole(mapping)
        return lanczos(mapping, allowance.guesses.start(mapping.support), _ROUGH_STEPS)

    def rough_over(self, network: Network) -> dict[Edge, SegmentNorms]:
        """Estimates the norms of the segments of a copy of the network in lower precision, which is
        enough to tell whether it is worth finding those that are shared."""
        found = {}
        for edge in self.shared:
            bare = SegmentNorms(Segment(network, *edge), Norm(math.inf, "unknown"))
            whole = bare.unweighted()
            estimate = lanczos(whole, self.budget.guesses.start(whole.support), _ROUGH_STEPS)
            found[edge] = replace(bare, norm=Norm(float(estimate[0]), "estimate"))
        return found

    def glimpsed(self, norm: SegmentNorms, mapping: WeightedMap, steps: int) -> Tensor:
        """Estimates a local norm of a segment from below, in few steps from the vector that the
        whole segment stretches most: no coin is drawn."""
        if not self._has_own(norm):
            return norm.from_whole(mapping)
        edge = norm.segment.source, norm.segment.sink
        if edge not in self._stretched:
            whole = norm.unweighted()
            start = self.budget.guesses.start(whole.support)
            self._stretched[edge] = stretched(whole, start, _STRETCHING)
        start = self._stretched[edge] * mapping.support
        length = torch.linalg.vector_norm(start.flatten(1), dim=1).clamp(min=1e-30)
        return lanczos(mapping, start / column(length, start), steps)

    def _has_own(self, norm: SegmentNorms) -> bool:
        return (norm.segment.source, norm.segment.sink) in self.own

    def find(self, bare: SegmentNorms, number: int, coins: Preparation) -> SegmentNorms:
        """The segment with its shared norm, whose coins are those of its ``number``."""
        if self.options.estimate:
            whole = bare.unweighted()
            start = self.budget.guesses.start(whole.support, number)
            value = float(power_iteration(whole, start, _POWER_STEPS)[0])
            return replace(bare, norm=Norm(value, "estimate"))
        if self.certain or not bare.takes_coins:
            return SegmentNorms.of(bare.segment)
        try:
            return SegmentNorms.of(bare.segment, coins.norm(number))
        except BaseException:
            coins.give_back(number)
            raise


class _Asked(Mapping[Edge, SegmentNorms]):
    """Shared norms by their edges, each found when it is first asked for."""

    def __init__(self, norms: AssuredNorms, bare: list[SegmentNorms], coins: Preparation) -> None:
        self._norms, self._coins = norms, coins
        self._bare = {
            (norm.segment.source, norm.segment.sink): (number, norm)
            for number, norm in enumerate(bare)
        }
        self._found: dict[Edge, SegmentNorms] = {}

    def __getitem__(self, edge: Edge) -> SegmentNorms:
        if edge not in self._found:
            number, bare = self._bare[edge]
            self._found[edge] = self._norms.find(bare, number, self._coins)
        return self._found[edge]

    def __iter__(self) -> Iterator[Edge]:
        return iter(self._bare)

    def __len__(self) -> int:
        return len(self._bare)
