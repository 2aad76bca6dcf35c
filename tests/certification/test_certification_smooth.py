"""Smooth activations at the highest effort, where balls are coupled and boxes are cut at samples:
in the plane a fine grid knows how far the nearest other class is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from laws import normal, seeded

from lipcert.certification import Certifier
from lipcert.certification.pace import PACES
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import Gelu, Sigmoid, Tanh, relu
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options

KINDS = {"Sigmoid": Sigmoid(), "Tanh": Tanh(), "Gelu": Gelu()}


def mixed(name: str, generator: torch.Generator) -> Network:
    """Smooth, kinked, smooth: couplings lead from either kind to the other."""
    builder, node = NetworkBuilder((1, 2)), 0
    for kind in (KINDS[name], relu(), KINDS[name]):
        before = builder.shape(node)
        weight, bias = normal((4, before[1]), generator), normal((4,), generator)
        operator = Dense.of(2 * weight / before[1] ** 0.5, bias, before)
        node = builder.activation(kind, builder.operator(operator, node))
    weight = normal((3, 4), generator)
    # No class wins everywhere.
    inside = Network(tuple(builder.nodes)).logits(normal((256, 1, 2), generator) / 2)
    last = Dense.of(weight, -weight @ inside.mean(0), (1, 4))
    return builder.build(builder.operator(last, node))


def nearest(network: Network, x: torch.Tensor, label: int, within: float) -> float:
    """The distance of the nearest point of a fine polar grid that is of another class."""
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)[:-1]
    length = torch.linspace(0, within, 401, dtype=torch.float64)[1:]
    way = torch.stack([angle.cos(), angle.sin()], 1)
    points = x + (length[:, None, None] * way).reshape(-1, 1, 2)
    other = (network.logits(points).argmax(1) != label).reshape(len(length), -1).any(1)
    return float(length[other][0]) if bool(other.any()) else math.inf


@pytest.mark.parametrize("name", KINDS)
def test_no_radius_reaches_another_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACES, "max", replace(PACES["max"], leaves=40))
    generator = seeded(3)
    network = mixed(name, generator)
    x = normal((8, 1, 2), generator) / 2
    labels = network.logits(x).argmax(1)
    far = [nearest(network, point, int(label), 0.8) for point, label in zip(x, labels, strict=True)]
    known = [row for row, distance in enumerate(far) if math.isfinite(distance)][:2]
    assert known
    # Just inside the truth, which takes the last rungs, and just beyond it.
    eps = [f"{0.93 * min(far[row] for row in known):.6g}",
           f"{1.03 * max(far[row] for row in known):.6g}"]  # fmt: skip
    options = Options(tuple(map(Epsilon.parse, eps)), effort="max", deployed="real")
    samples = Certifier(network, options, samples=len(known))(x[known], labels[known], known)
    for sample in samples:
        assert sample.radius <= far[sample.index]
        assert eps[1] not in sample.certified
    assert max(sample.radius / far[sample.index] for sample in samples) > 0.7
