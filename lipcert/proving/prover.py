"""The search for a proof of each claim, in the checker's own terms.

A claim climbs until its margins are proven with a little to spare: slopes at the sample and chords;
norms and chains of its own; slopes found by gradient ascent; boxes refined by forms of their own;
branch and bound. What is kept of it are hints, see ``audit/PROOFS.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.audit.proofs.balls import Chain, chain_before, segment_gram
from lipcert.audit.proofs.bends import Function, Piecewise
from lipcert.audit.proofs.dual import Cuts, Forms, bound, minima, relaxed
from lipcert.audit.proofs.format import CHORD, SLOPE_LEAST, SLOPE_STEP, TANGENT
from lipcert.audit.proofs.norms import Gram, estimate
from lipcert.audit.proofs.replay import BoxForms, Hints, Network, Replay, chord_slopes
from lipcert.audit.proofs.state import Layer, Sink, State, select
from lipcert.bounds.ascent import Gait, ascend

# Multipliers that are tried first, times ‖A‖ / ball.
_SHARES = (0.3, 0.03, 0.003, 1e-4, 1e-7)
_SLOPE_RATE, _MULTIPLIER_RATE = 0.05, 0.1
_SLOPES = SLOPE_LEAST, SLOPE_LEAST + 255 / SLOPE_STEP
# To spare, as a share of the margin at the sample: other coins, and slopes of one byte.
_SPARE = 0.004
_STEPS = (20, 60, 160)
_BALANCING, _LANCZOS = 6, 24
# What coins find lies about so far above the root of the scale that they are given.
_ABOVE = 1.013
# As many numbers as all forms of refined boxes of a sample may see, and as forms are held at once.
_BOX_WORK, _AT_ONCE = 2**24, 2**20
_LEAVES, _LEAF_STEPS, _LEAF_WORK = 256, 30, 2**22
# A margin that is short by more than this share of the clean one is given up.
_HOPELESS = 0.75


@dataclass(frozen=True, eq=False)
class Found:
    """A form of a proof, see ``format.Arrays``: ``slopes`` by function where they are stored."""

    bend: int
    place: int
    sign: int
    rule: int
    multiplier: tuple[float, ...]
    slopes: dict[int, Tensor] | None = None
    cuts: tuple[tuple[int, float, bool], ...] = ()


@dataclass(eq=False)
class Proof:
    """Of one sample: hints for norms, ``(n,)`` each, the forms, and the masks of all functions,
    by value, that say whose slopes are stored."""

    edge_scale: Tensor
    chain_scale: Tensor
    chain_weight: Tensor
    forms: list[Found] = field(default_factory=list)
    masks: dict[int, Tensor] = field(default_factory=dict)


class Seeking(Replay):
    """A replay that finds its own hints: ``deep`` with norms and chains of each sample's own,
    ``boxed`` with refined boxes."""

    def __init__(self, replay: Replay, *, deep: bool, boxed: bool) -> None:
        self.__dict__.update(replay.__dict__)
        self.deep, self.boxed = deep, boxed

    def seek(self, x: Tensor, eps: Tensor) -> tuple[State, Hints, list[list[Found]]]:
        sizes = self.network.sizes
        self.hints = Hints(*(
            torch.zeros(len(x), count, dtype=torch.float64)
            for count in (sizes.edges, sizes.bends, sizes.weights)
        ))  # fmt: skip
        self.boxes: list[list[Found]] = [[] for _ in range(len(x))]
        state = self.state(x, eps, self.hints, _Boxes(self))
        return state, self.hints, self.boxes

    def balled(self, state: State, value: int, layer: Layer, hints: Hints) -> Layer:
        if self.deep:
            self._scales(state, value, layer)
        return super().balled(state, value, layer, hints)

    def norm(self, gram: Gram, mask: Tensor, scale: Tensor, terms: float) -> Tensor:
        """About what coins would find."""
        return scale.sqrt() * _ABOVE

    def _scales(self, state: State, value: int, layer: Layer) -> None:
        segments = self.graph.segments[self.graph.bend(value).input]
        first, count = self.network.edges[value]
        number = self.network.bends.index(value)
        size = layer.mask.shape[1]
        chained = len(chain_before(self.graph, value)) > 0
        for place, source in enumerate(segments.sources):
            gain = state.sources[source].gain
            if chained and size > 256 and source:
                # The chain says it better.
                continue
            gram = segment_gram(segments, source, gain, layer.mask)
            found = estimate(gram, len(gain), size, _LANCZOS) * 1.01
            self.hints.edge_scale[:, first + place] = _single(found)
        if not chained:
            return
        first, count = self.network.chains[value]
        chain = Chain.of(state, value, layer.mask)
        weights = _balanced(chain)
        self.hints.chain_weight[:, first : first + count] = _single(weights)
        found = estimate(chain.gram(_single(weights)), len(weights), size, _LANCZOS) * 1.01
        self.hints.chain_scale[:, number] = _single(found)


class _Boxes:
    """Forms of single neurons for refined boxes, as a replay asks for them."""

    def __init__(self, seeking: Seeking) -> None:
        self.seeking = seeking

    def of_box(self, state: State, value: int) -> Iterator[BoxForms]:
        seeking = self.seeking
        network, graph = seeking.network, seeking.graph
        if not seeking.boxed or not chain_before(graph, value):
            return
        sink = graph.bend(value).input
        pieces = graph.bend(value).function.pieces(
            state.sinks[sink].value, state.sinks[sink].low, state.sinks[sink].high
        )
        bends = (pieces.flat < pieces.steep) & (pieces.most > 0)
        seen = sum(graph.widths[b] for b in chain_before(graph, value)) + graph.widths[0]
        bends = bends & (2 * bends.sum(1, keepdim=True) * seen <= _BOX_WORK)
        rows, places = bends.nonzero().unbind(1)
        number = network.bends.index(value)
        for sign in (1.0, -1.0):
            for some in torch.split(torch.arange(len(rows)), max(1, _AT_ONCE // seen)):
                unit = torch.zeros(len(some), graph.widths[sink], dtype=torch.float64)
                unit.scatter_(1, places[some][:, None], sign)
                forms, least, rules = started(
                    state, sink, rows[some], unit, pixel_domain=seeking.pixel_domain
                )
                before = state.sinks[sink].low if sign > 0 else -state.sinks[sink].high
                better = least > before[rows[some], places[some]]
                for k in better.nonzero().flatten().tolist():
                    given = _multipliers(network, forms, k)
                    found = Found(number, int(places[some[k]]), int(sign), int(rules[k]), given)
                    seeking.boxes[int(rows[some[k]])].append(found)
                signs = torch.full((len(some),), sign, dtype=torch.float64)
                yield BoxForms(forms, places[some], signs)


def _single(values: Tensor) -> Tensor:
    """As float32 has them."""
    return values.float().double()


def _multipliers(network: Network, forms: Forms, row: int) -> tuple[float, ...]:
    return tuple(
        float(forms.multipliers[value][row]) if value in forms.multipliers else 0.0
        for value in network.bends
    )


def _balanced(chain: Chain) -> Tensor:
    """Weights near ``r_b / ‖P_bᵀ u‖``, ``u`` the top singular vector, which are the best."""
    weights = torch.ones_like(chain.radii)
    u = torch.cos(1.0 + torch.arange(chain.mask.shape[1])).double() * chain.mask
    for step in range(_BALANCING):
        u = u / u.norm(dim=1, keepdim=True).clamp(min=1e-300)
        u = chain.gram(weights)(u, False)
        u = u / u.norm(dim=1, keepdim=True).clamp(min=1e-300)
        sizes = _sizes(chain, u)
        sizes = sizes.maximum(1e-6 * sizes.amax(1, keepdim=True)).clamp(min=1e-300)
        wanted = chain.radii / sizes
        wanted = wanted / wanted.amax(1, keepdim=True).clamp(min=1e-300)
        weights = (wanted if step == 0 else (weights * wanted).sqrt()).clamp(min=1e-9)
    return torch.where(torch.isfinite(weights), weights, 1.0)


@torch.no_grad()
def started(
    state: State, sink: int, sample: Tensor, rows: Tensor, *, pixel_domain: bool
) -> tuple[Forms, Tensor, Tensor]:
    """Of slopes at the sample and of chords the better, with multipliers chosen layer by layer;
    what they prove, and which it was."""
    found = [_walked(state, sink, sample, rows, chord=chord) for chord in (False, True)]
    values = [bound(state, forms, pixel_domain=pixel_domain) for forms in found]
    first, second = (value.nan_to_num(-math.inf, -math.inf, -math.inf) for value in values)
    chord = second > first
    rules = torch.where(chord, CHORD, TANGENT)
    column, chords = chord[:, None], found[1].falling
    assert chords is not None
    forms = Forms(
        sink, sample, rows, found[0].slopes,
        {v: torch.where(chord, found[1].multipliers[v], m)
         for v, m in found[0].multipliers.items()},
        {v: torch.where(column, chords[v], s) for v, s in found[0].slopes.items()},
    )  # fmt: skip
    return forms, torch.maximum(first, second), rules


def _walked(state: State, sink: int, sample: Tensor, rows: Tensor, *, chord: bool) -> Forms:
    graph = state.graph
    slopes = {v: layer.pieces.tangent[sample] for v, layer in state.layers.items()}
    falling = {v: chord_slopes(layer)[sample] for v, layer in state.layers.items()}
    zero = torch.zeros(len(rows), dtype=torch.float64)
    multipliers = dict.fromkeys(state.layers, zero + 1e-30)
    forms = Forms(sink, sample, rows, slopes, multipliers, falling if chord else None)
    pending = graph.segments[sink].back(rows)
    for value in reversed(graph.bends):
        row = pending.pop(value, None)
        if row is None:
            continue
        layer = state.layers[value]
        ball = layer.ball[sample].clamp(min=1e-30)
        base = (row * layer.mask[sample]).norm(dim=1).clamp(min=1e-20) / ball
        best, kept = torch.full_like(zero, -math.inf), base
        slope = forms.slope(value, row)
        for share in _SHARES:
            multipliers[value] = _single(share * base)
            least, down = relaxed(layer, value, row, slope, forms)
            better = least > best
            best = torch.where(better, least, best)
            kept = torch.where(better, multipliers[value], kept)
        multipliers[value] = kept
        for source, part in graph.segments[graph.bend(value).input].back(down).items():
            pending[source] = pending[source] + part if source in pending else part
    return forms


class Prover:
    """Proofs for claims about samples of one network."""

    def __init__(self, replay: Replay) -> None:
        self.replay, self.network, self.graph = replay, replay.network, replay.graph

    def __call__(self, x: Tensor, labels: Tensor, eps: Tensor) -> list[Proof | None]:
        """For each sample ``(B, n)`` a proof that no change within ``eps`` ``(B,)`` alters its
        class; None where none was found."""
        found: list[Proof | None] = [None] * len(x)
        left = torch.arange(len(x))
        for deep, boxed, steps in (
            (False, False, ()), (True, False, _STEPS[:1]), (True, True, _STEPS),
        ):  # fmt: skip
            if not len(left):
                break
            with torch.no_grad():
                seeking = Seeking(self.replay, deep=deep, boxed=boxed)
                state, hints, boxes = seeking.seek(x[left], eps[left])
            proven = self._proven(state, labels[left], steps, split=boxed)
            for row, forms in proven.items():
                found[int(left[row])] = Proof(
                    hints.edge_scale[row], hints.chain_scale[row], hints.chain_weight[row],
                    [*boxes[row], *forms],
                    {v: layer.mask[row] for v, layer in state.layers.items()},
                )  # fmt: skip
            left = left[[row for row in range(len(left)) if row not in proven]]
        return found

    def _proven(
        self, state: State, labels: Tensor, steps: tuple[int, ...], *, split: bool
    ) -> dict[int, list[Found]]:
        """The forms of the samples all of whose margins are proven."""
        logits = state.sinks[self.graph.output].value
        classes = logits.shape[1]
        sample = torch.arange(len(labels)).repeat_interleave(classes)
        other = torch.arange(classes).repeat(len(labels))
        keep = other != labels[sample]
        sample, other = sample[keep], other[keep]
        rows = torch.zeros(len(sample), classes, dtype=torch.float64)
        rows.scatter_(1, labels[sample][:, None], 1.0).scatter_(1, other[:, None], -1.0)
        clean = logits[sample, labels[sample]] - logits[sample, other]
        smallest = torch.full((len(labels),), math.inf, dtype=torch.float64)
        smallest = smallest.scatter_reduce(0, sample, clean, "amin")
        needed = self.replay.tie + _SPARE * smallest[sample] - clean
        forms, least, rules = started(
            state, self.graph.output, sample, rows, pixel_domain=self.replay.pixel_domain
        )
        done: dict[int, list[Found]] = {}
        for k in (least > needed).nonzero().flatten().tolist():
            given = _multipliers(self.network, forms, k)
            done[k] = [Found(-1, int(other[k]), 1, int(rules[k]), given)]
        open_ = (~(least > needed)).nonzero().flatten()
        best: dict[int, tuple[dict[int, Tensor], dict[int, Tensor]]] = {}
        gap: dict[int, float] = {}
        slopes, multipliers = _resolved(state, forms, open_)
        for count in steps:
            if not len(open_):
                break
            part = Forms(self.graph.output, sample[open_], rows[open_], slopes, multipliers)
            values, slopes, multipliers = self._ascended(state, part, count)
            held = values > needed[open_]
            gap.update(zip(open_.tolist(), (needed[open_] - values).tolist(), strict=True))
            for place in held.nonzero().flatten().tolist():
                given = _multipliers(
                    self.network, Forms(0, sample, rows, slopes, multipliers), place
                )
                own = {v: s[place] for v, s in slopes.items()}
                done[int(open_[place])] = [
                    Found(-1, int(other[open_[place]]), 1, TANGENT, given, own)
                ]
            keep = (~held).nonzero().flatten()
            open_ = open_[keep]
            slopes = {v: s[keep] for v, s in slopes.items()}
            multipliers = {v: m[keep] for v, m in multipliers.items()}
        for place, k in enumerate(open_.tolist()):
            best[k] = (
                {v: s[place] for v, s in slopes.items()},
                {v: m[place] for v, m in multipliers.items()},
            )
        if split:
            lost: set[int] = set()
            for k, start in best.items():
                if int(sample[k]) in lost:
                    continue
                if not gap[k] < _HOPELESS * float(smallest[sample[k]]):
                    lost.add(int(sample[k]))
                    continue
                leaves = self._split(state, int(sample[k]), rows[k], float(needed[k]), start)
                if leaves is None:
                    lost.add(int(sample[k]))
                else:
                    done[k] = [replace(leaf, place=int(other[k])) for leaf in leaves]
        whole: dict[int, list[Found]] = {}
        for row in range(len(labels)):
            mine = (sample == row).nonzero().flatten().tolist()
            if all(k in done for k in mine):
                whole[row] = [form for k in mine for form in done[k]]
        return whole

    def _ascended(
        self, state: State, forms: Forms, steps: int
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Gradient ascent; what slopes of one byte and multipliers in float32 prove, and these."""
        before = [v for v in self.graph.bends if v in forms.slopes]

        def value_of(numbers: list[Tensor]) -> Tensor:
            slopes = dict(zip(before, numbers[: len(before)], strict=True))
            powers = {v: n.exp() for v, n in zip(before, numbers[len(before) :], strict=True)}
            now = replace(forms, slopes=slopes, multipliers=powers, falling=None)
            return bound(state, now, pixel_domain=self.replay.pixel_domain)

        logs = [forms.multipliers[v].clamp(min=1e-30).log() for v in before]
        gaits = [Gait(_SLOPE_RATE, _SLOPES)] * len(before) + [Gait(_MULTIPLIER_RATE)] * len(before)
        _, kept = ascend(value_of, [*(forms.slopes[v] for v in before), *logs], gaits, steps)
        numbers = [number.detach() for number in kept]
        stored = {v: _stored(n) for v, n in zip(before, numbers[: len(before)], strict=True)}
        multipliers = {
            v: _single(n.exp()) for v, n in zip(before, numbers[len(before) :], strict=True)
        }
        with torch.no_grad():
            last = replace(forms, slopes=stored, multipliers=multipliers, falling=None)
            values = bound(state, last, pixel_domain=self.replay.pixel_domain)
        return values.nan_to_num(-math.inf, -math.inf, -math.inf), stored, multipliers

    def _split(
        self, state: State, sample: int, row: Tensor, needed: float,
        start: tuple[dict[int, Tensor], dict[int, Tensor]],
    ) -> list[Found] | None:  # fmt: skip
        """Leaves that prove one margin, or None."""
        own = select(state, torch.tensor([sample]))
        leaves = [_Leaf((), *start)]
        done: list[Found] = []
        while leaves:
            count = len(leaves) + len(done)
            if count > _LEAVES or count * self.network.sizes.neurons > _LEAF_WORK:
                return None
            halves = [half for leaf in leaves for half in self._halves(own, row, leaf)]
            if not halves:
                return None
            forms = self._forms_of(own, row, halves)
            values, slopes, multipliers = self._ascended(own, forms, _LEAF_STEPS)
            leaves = []
            for k, half in enumerate(halves):
                slope = {v: s[k] for v, s in slopes.items()}
                multiplier = {v: m[k] for v, m in multipliers.items()}
                leaf = _Leaf(half.cuts, slope, multiplier)
                if float(values[k]) > needed:
                    given = tuple(float(multiplier[v]) for v in self.network.bends)
                    done.append(Found(-1, 0, 1, TANGENT, given, slope, half.cuts))
                else:
                    leaves.append(leaf)
        return done

    def _forms_of(self, own: State, row: Tensor, leaves: list[_Leaf]) -> Forms:
        count = len(leaves)
        form, bend, neuron, place, above = [], [], [], [], []
        for k, leaf in enumerate(leaves):
            for where, at, side in leaf.cuts:
                value = max(v for v, f in self.network.first_neuron.items() if f <= where)
                form.append(k)
                bend.append(value)
                neuron.append(where - self.network.first_neuron[value])
                place.append(at)
                above.append(side)
        cuts = Cuts(
            torch.tensor(form, dtype=torch.int64), torch.tensor(bend, dtype=torch.int64),
            torch.tensor(neuron, dtype=torch.int64), torch.tensor(place, dtype=torch.float64),
            torch.tensor(above, dtype=torch.bool),
        )  # fmt: skip
        stack = {v: torch.stack([leaf.slopes[v] for leaf in leaves]) for v in leaves[0].slopes}
        powers = {v: torch.stack([leaf.multipliers[v] for leaf in leaves]) for v in stack}
        return Forms(
            self.graph.output, torch.zeros(count, dtype=torch.int64), row.expand(count, -1),
            stack, powers, None, cuts,
        )  # fmt: skip

    @torch.no_grad()
    def _halves(self, own: State, row: Tensor, leaf: _Leaf) -> list[_Leaf]:
        """Both sides of a cut where the bound of a leaf loses most; none where nothing can be."""
        forms = self._forms_of(own, row, [leaf])
        pending = self.graph.segments[self.graph.output].back(forms.rows)
        worst, cut = 0.0, None
        taken = {where for where, _, _ in leaf.cuts}
        for value in reversed(self.graph.bends):
            if value not in pending:
                continue
            layer, here = own.layers[value], pending.pop(value)
            slope = forms.slopes[value] * layer.mask
            loss = -minima(layer, value, here, slope, forms)[0]
            sink = layer.sink
            places = _places(self.graph.bend(value).function, sink)[0]
            first = self.network.first_neuron[value]
            loss = torch.where(places.isnan(), -math.inf, loss)
            for where in taken:
                if first <= where < first + len(loss):
                    loss[where - first] = -math.inf
            most = int(loss.argmax())
            if float(loss[most]) > worst:
                worst = float(loss[most])
                cut = (first + most, float(places[most] + sink.value[0, most]))
            down = self.graph.segments[self.graph.bend(value).input].back(here * slope)
            for source, part in down.items():
                pending[source] = pending[source] + part if source in pending else part
        if cut is None:
            return []
        return [
            _Leaf((*leaf.cuts, (*cut, side)), leaf.slopes, leaf.multipliers)
            for side in (False, True)
        ]


def _places(function: Function, sink: Sink) -> Tensor:
    """Where boxes may be cut, as changes, ``(B, n)``: at a kink, or at the sample; NaN nowhere."""
    found = torch.full_like(sink.value, math.nan)
    if not isinstance(function, Piecewise):
        return torch.where((sink.low < 0) & (sink.high > 0), 0.0, found)
    for kink in function.kinks:
        place = kink - sink.value
        found = torch.where((sink.low < place) & (place < sink.high), place, found)
    return found


def _sizes(chain: Chain, u: Tensor) -> Tensor:
    """``‖P_bᵀ u‖`` of every block of a chain."""
    seen = chain.back(u)
    rows = [seen[0] if 0 in seen else torch.zeros_like(u)]
    rows += [seen[b] * chain.halves[b] for b in chain.bends]
    rows += [seen[b] * chain.middles[b] for b in chain.bends]
    return torch.stack([row.norm(dim=1) for row in rows], 1)


@dataclass(frozen=True, eq=False)
class _Leaf:
    cuts: tuple[tuple[int, float, bool], ...]
    slopes: dict[int, Tensor]
    multipliers: dict[int, Tensor]


def _resolved(
    state: State, forms: Forms, rows: Tensor
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Slopes and multipliers of some forms as plain numbers."""
    slopes, graph = {}, state.graph
    pending = graph.segments[forms.sink].back(forms.rows[rows])
    for value in reversed(graph.bends):
        row = pending.pop(value, None)
        slope = forms.slopes[value][rows]
        if row is not None:
            assert forms.falling is not None
            slope = torch.where(row < 0, forms.falling[value][rows], slope)
            slope = slope * state.layers[value].mask[forms.sample[rows]]
            down = graph.segments[graph.bend(value).input].back(row * slope)
            for source, part in down.items():
                pending[source] = pending[source] + part if source in pending else part
        slopes[value] = slope.clamp(*_SLOPES)
    return slopes, {v: m[rows] for v, m in forms.multipliers.items()}


def _stored(slope: Tensor) -> Tensor:
    """Rounded to what one byte holds."""
    return ((slope - SLOPE_LEAST) * SLOPE_STEP).round().clamp(0, 255) / SLOPE_STEP + SLOPE_LEAST
