"""The search for a proof of each claim, in the checker's own terms.

A claim climbs until its margins are proven with a little to spare: slopes at the sample and chords;
norms and chains of its own; slopes found by gradient ascent; boxes refined by forms of their own;
branch and bound. What is kept of it are hints, see ``audit/PROOFS.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.audit.proofs.dual import Forms
from lipcert.audit.proofs.format import TANGENT
from lipcert.audit.proofs.replay import Replay
from lipcert.audit.proofs.state import State
from lipcert.proving.hints import Choice, Found, Proof, listed, margin_rows, multipliers_of
from lipcert.proving.seeking import Seeking
from lipcert.proving.splitting import Splitting
from lipcert.proving.start import ascended, resolved, started

# To spare, as a share of the margin at the sample: other coins, and slopes of one byte.
_SPARE = 0.004
_STEPS = (20, 60, 160)
# A margin that is short by more than this share of the clean one is given up.
_HOPELESS = 0.75


@dataclass(frozen=True)
class _Effort:
    """One attempt: what a replay may find for itself, steps of ascent, and whether to split."""

    deep: bool
    boxed: bool
    steps: tuple[int, ...]
    split: bool


_EFFORTS = (
    _Effort(deep=False, boxed=False, steps=(), split=False),
    _Effort(deep=True, boxed=False, steps=_STEPS[:1], split=False),
    _Effort(deep=True, boxed=True, steps=_STEPS, split=True),
)


@dataclass(eq=False)
class _Margins:
    """All margins of some samples, in their state, and the forms found so far that prove them.

    ``needed``: what a form has to exceed; ``smallest``: the least margin at the sample.
    """

    state: State
    sample: Tensor
    other: Tensor
    rows: Tensor
    needed: Tensor
    smallest: Tensor
    done: dict[int, list[Found]] = field(default_factory=dict)

    @classmethod
    def of(cls, replay: Replay, state: State, labels: Tensor) -> _Margins:
        logits = state.sinks[replay.graph.output].value
        sample, other, rows = margin_rows(labels, logits.shape[1])
        clean = logits[sample, labels[sample]] - logits[sample, other]
        smallest = torch.full((len(labels),), math.inf, dtype=torch.float64)
        smallest = smallest.scatter_reduce(0, sample, clean, "amin")
        needed = replay.tie + _SPARE * smallest[sample] - clean
        return cls(state, sample, other, rows, needed, smallest[sample])

    def whole(self, samples: int) -> dict[int, list[Found]]:
        """The forms of the samples all of whose margins are proven."""
        found = {}
        for row in range(samples):
            mine = (self.sample == row).nonzero().flatten().tolist()
            if all(k in self.done for k in mine):
                found[row] = [form for k in mine for form in self.done[k]]
        return found


class Prover:
    """Proofs for claims about samples of one network."""

    def __init__(self, replay: Replay) -> None:
        self.replay, self.network, self.graph = replay, replay.network, replay.graph

    def __call__(self, x: Tensor, labels: Tensor, eps: Tensor) -> list[Proof | None]:
        """For each sample ``(B, n)`` a proof that no change within ``eps`` ``(B,)`` alters its
        class; None where none was found."""
        found: list[Proof | None] = [None] * len(x)
        left = torch.arange(len(x))
        for effort in _EFFORTS:
            if not len(left):
                break
            with torch.no_grad():
                seeking = Seeking(self.replay, deep=effort.deep, boxed=effort.boxed)
                state, hints, boxes = seeking.seek(x[left], eps[left])
            proven = self._proven(state, labels[left], effort)
            for row, forms in proven.items():
                found[int(left[row])] = Proof(
                    hints.edge_scale[row], hints.chain_scale[row], hints.chain_weight[row],
                    [*boxes[row], *forms],
                    {v: layer.mask[row] for v, layer in state.layers.items()},
                )  # fmt: skip
            left = left[[row for row in range(len(left)) if row not in proven]]
        return found

    def _proven(self, state: State, labels: Tensor, effort: _Effort) -> dict[int, list[Found]]:
        """The forms of the samples all of whose margins are proven."""
        margins = _Margins.of(self.replay, state, labels)
        forms, still_open = self._started(margins)
        still_open, choice, gaps = self._ascended(margins, forms, still_open, effort.steps)
        if effort.split:
            self._split(margins, still_open, choice, gaps)
        return margins.whole(len(labels))

    def _started(self, margins: _Margins) -> tuple[Forms, Tensor]:
        """Proves what slopes at the sample and chords can; returns them, and what is left."""
        forms, least, rules = started(
            margins.state, self.graph.output, margins.sample, margins.rows,
            pixel_domain=self.replay.pixel_domain,
        )  # fmt: skip
        held = least > margins.needed
        multipliers = multipliers_of(forms)
        for k in held.nonzero().flatten().tolist():
            given = listed(self.network, multipliers, k)
            margins.done[k] = [Found(-1, int(margins.other[k]), 1, int(rules[k]), given)]
        return forms, (~held).nonzero().flatten()

    def _ascended(
        self, margins: _Margins, forms: Forms, still_open: Tensor, steps: Sequence[int]
    ) -> tuple[Tensor, Choice, Tensor]:
        """Proves what gradient ascent can; returns what is left, where it has come to, and by how
        much each is short."""
        choice = resolved(margins.state, forms, still_open)
        gaps = torch.full((len(still_open),), math.inf, dtype=torch.float64)
        for count in steps if self.network.graph.bends else ():
            if not len(still_open):
                break
            part = replace(
                forms, sample=margins.sample[still_open], rows=margins.rows[still_open],
                falling=None,
            )  # fmt: skip
            values, choice = ascended(
                margins.state, part, choice, count, pixel_domain=self.replay.pixel_domain
            )
            gaps = margins.needed[still_open] - values
            for place in (gaps < 0).nonzero().flatten().tolist():
                k = int(still_open[place])
                other = int(margins.other[k])
                margins.done[k] = [choice.found(self.network, place, other, TANGENT)]
            keep = (~(gaps < 0)).nonzero().flatten()
            still_open, choice, gaps = still_open[keep], choice.rows(keep), gaps[keep]
        return still_open, choice, gaps

    def _split(self, margins: _Margins, still_open: Tensor, choice: Choice, gaps: Tensor) -> None:
        """Proves by branch and bound what is not hopeless; one margin that is lost loses its
        sample."""
        lost = set[int]()
        for place, k in enumerate(still_open.tolist()):
            sample = int(margins.sample[k])
            if sample in lost:
                continue
            leaves = None
            if float(gaps[place]) < _HOPELESS * float(margins.smallest[k]):
                splitting = Splitting.of(
                    self.network, margins.state, sample, margins.rows[k],
                    pixel_domain=self.replay.pixel_domain,
                )  # fmt: skip
                start = choice.rows(torch.tensor([place]))
                leaves = splitting.leaves(float(margins.needed[k]), start)
            if leaves is None:
                lost.add(sample)
            else:
                other = int(margins.other[k])
                margins.done[k] = [replace(leaf, place=other) for leaf in leaves]
