"""A replay that finds its own hints: norms and chains of each sample's own, and refined boxes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lipcert.audit.proofs.balls import Chain, segment_gram
from lipcert.audit.proofs.norms import Gram
from lipcert.audit.proofs.replay import BoxForms, Hints, Replay
from lipcert.audit.proofs.state import Layer, State
from lipcert.proving.hints import Found, listed, multipliers_of, single
from lipcert.proving.start import started

# Rounds of balancing rows against columns, and steps for a largest singular value: the checker
# proves whatever comes out, so more of them only make a proof tighter.
_BALANCING, _LANCZOS = 6, 24
# What coins find lies about so far above the root of the scale that they are given.
_ABOVE = 1.0105
# As many numbers as all forms of refined boxes of a sample may see, and as forms are held at once.
_BOX_WORK, _AT_ONCE = 2**24, 2**20


class Seeking(Replay):
    """``deep`` with norms and chains of each sample's own, ``boxed`` with refined boxes."""

    def __init__(self, replay: Replay, *, deep: bool, boxed: bool) -> None:
        self.__dict__.update(replay.__dict__)
        self.deep, self.boxed = deep, boxed

    def seek(self, x: Tensor, eps: Tensor) -> tuple[State, Hints, list[list[Found]]]:
        """All that is known of samples over their balls, and the hints that it takes."""
        sizes = self.network.sizes
        self.hints = Hints(*(
            torch.zeros(len(x), count, dtype=torch.float64)
            for count in (sizes.edges, sizes.bends, sizes.weights)
        ))  # fmt: skip
        self.boxes: list[list[Found]] = [[] for _ in range(len(x))]
        return self.state(x, eps, self.hints, self._box_forms), self.hints, self.boxes

    def balled(self, state: State, value: int, layer: Layer, hints: Hints) -> Layer:
        if self.deep:
            self._scale(state, value, layer)
        return super().balled(state, value, layer, hints)

    def norm(self, gram: Gram, mask: Tensor, scale: Tensor, terms: float) -> Tensor:
        """About what coins would find."""
        return scale.sqrt() * _ABOVE

    def _scale(self, state: State, value: int, layer: Layer) -> None:
        """Sets the scales and weights of a layer's norms."""
        segments, number = self.graph.before(value), self.network.graph.bends.index(value)
        edges, chained = self.network.edges[value], bool(self.graph.chains[value])
        for place, source in enumerate(segments.sources):
            # The chain says it better, where there is one.
            if not (chained and layer.mask.shape[1] > 256 and source):
                gram = segment_gram(segments, source, state.sources[source].gain, layer.mask)
                self.hints.edge_scale[:, edges.start + place] = _estimate(gram, layer.mask)
        if chained:
            chain = Chain.of(state, value, layer.mask, torch.arange(len(layer.mask)))
            weights = single(_balanced(chain))
            self.hints.chain_weight[:, self.network.weights[value]] = weights
            self.hints.chain_scale[:, number] = _estimate(chain.gram(weights), layer.mask)

    def _box_forms(self, state: State, value: int) -> Iterator[BoxForms]:
        """Forms for the box of what a function reads, where it is bent; those that help are
        kept."""
        graph, chain = self.graph, self.graph.chains[value]
        if not self.boxed or not chain:
            return
        index = graph.bend(value).input
        sink = state.sinks[index]
        pieces = graph.bend(value).function.pieces(sink.value, sink.low, sink.high)
        bends = (pieces.flat < pieces.steep) & (pieces.most > 0)
        seen = sum(graph.widths[b] for b in chain) + graph.widths[0]
        bends = bends & (2 * bends.sum(1, keepdim=True) * seen <= _BOX_WORK)
        rows, places = bends.nonzero().unbind(1)
        number = self.network.graph.bends.index(value)
        for sign in (1.0, -1.0):
            for some in torch.split(torch.arange(len(rows)), max(1, _AT_ONCE // seen)):
                unit = torch.zeros(len(some), graph.widths[index], dtype=torch.float64)
                unit.scatter_(1, places[some][:, None], sign)
                forms, least, rules = started(
                    state, index, rows[some], unit, pixel_domain=self.pixel_domain
                )
                before = sink.low if sign > 0 else -sink.high
                better = least > before[rows[some], places[some]]
                for k in better.nonzero().flatten().tolist():
                    given = listed(self.network, multipliers_of(forms), k)
                    found = Found(number, int(places[some[k]]), int(sign), int(rules[k]), given)
                    self.boxes[int(rows[some[k]])].append(found)
                yield forms, places[some], torch.full((len(some),), sign, dtype=torch.float64)


def _estimate(gram: Gram, mask: Tensor) -> Tensor:
    """A little above ``‖M‖²``, ``(B,)``: the largest Ritz value of a Krylov space."""
    size = mask.shape[1]
    places = torch.arange(size, dtype=torch.float64)
    v = torch.cos(1 + 0.7 * places * places).expand(len(mask), -1)
    v = v / v.norm(dim=1, keepdim=True)
    previous, off = torch.zeros_like(v), v.new_zeros(len(mask), 1)
    main, beside = [], []
    for _ in range(min(_LANCZOS, size)):
        w = gram(v, False) - off * previous
        along = (w * v).sum(1, keepdim=True)
        w = w - along * v
        off = w.norm(dim=1, keepdim=True)
        alive = off > 1e-9 * along.abs()
        main.append(along[:, 0])
        beside.append(torch.where(alive, off, 0.0)[:, 0])
        previous, v = v, torch.where(alive, w / torch.where(alive, off, 1.0), 0.0)
        off = torch.where(alive, off, 0.0)
    matrix = torch.diag_embed(torch.stack(main, 1))
    if len(main) > 1:
        side = torch.stack(beside[:-1], 1)
        matrix = matrix + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    values: Tensor = torch.linalg.eigvalsh(matrix.nan_to_num(0.0, 0.0, 0.0))
    return single(values[:, -1].clamp(min=0) * 1.01)


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


def _sizes(chain: Chain, u: Tensor) -> Tensor:
    """``‖P_bᵀ u‖`` of every block of a chain."""
    seen = chain.back(u)
    rows = [seen[0] if 0 in seen else torch.zeros_like(u)]
    rows += [seen[b] * chain.halves[b] for b in chain.bends]
    rows += [seen[b] * chain.middles[b] for b in chain.bends]
    return torch.stack([row.norm(dim=1) for row in rows], 1)
