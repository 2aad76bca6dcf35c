"""The norms of a network's segments as people read them, and what balls leave of the neurons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lipcert.bounds import Layers
from lipcert.bounds.ball import Edge
from lipcert.certificate import Sample
from lipcert.network import Segment
from lipcert.norms import Norm, SegmentNorms


@dataclass(frozen=True)
class LayerNorm:
    """One segment's norm, from ``source`` to ``sink``, with what it rests on, infinite where it was
    not asked for; ``neurons``: how many values the sink has."""

    source: str
    sink: str
    operator: str
    value: float
    assurance: str
    neurons: int


def layer_norms(layers: Layers, norms: Mapping[Edge, SegmentNorms] | None) -> list[LayerNorm]:
    """Of every segment between activations, in the order of ``layers.edges``, then of the rows to
    the logits; without ``norms`` only the latter have values."""
    rows, none = [], Norm(math.inf, "not asked for")
    for edge in layers.edges:
        norm = none if norms is None else norms[edge.source, edge.sink].norm
        rows.append(_described(edge, norm.value, norm.assurance))
    for source, matrix in layers.last.items():
        value = float(layers.last_norm(source, matrix.new_ones(1, matrix.shape[1]))[0])
        segment = Segment(layers.network, source, layers.network.output)
        rows.append(_described(segment, value, "deterministic"))
    return rows


def with_eliminated(norms: Sequence[LayerNorm], samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """The ``layers`` of a certificate: the norms, and the mean share of the sink's neurons that do
    not vary in the ball of the largest eps, over the samples that say so."""
    # Of each layer, neurons and samples that say so.
    counts = [[0, 0] for _ in norms]
    for sample in samples:
        for total, count in zip(counts, sample.eliminated, strict=False):
            total[0] += count
            total[1] += 1
    records = []
    for norm, (count, said) in zip(norms, counts, strict=True):
        share = count / (said * norm.neurons) if said else None
        value = norm.value if math.isfinite(norm.value) else None
        records.append(asdict(norm) | {"value": value, "eliminated": share})
    return records


def _described(segment: Segment, value: float, assurance: str) -> LayerNorm:
    nodes = segment.network.nodes
    kinds = ", ".join(type(nodes[i].kind).__name__ for i in segment.path) or "identity"
    source, sink = (nodes[i].origin or f"node {i}" for i in (segment.source, segment.sink))
    return LayerNorm(source, sink, kinds, value, assurance, math.prod(nodes[segment.sink].shape))
