"""Verdicts alone: decided at the eps asked for, with no radius beyond."""

import pytest
import torch
from attacks import in_ball, margins, smallest_margins
from laws import normal, random_network, seeded, uniform

from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.certification.rungs import is_deep
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options

EPS = ("0.02", "0.0002", "0.1")


def case(seed: int) -> tuple[Network, torch.Tensor, torch.Tensor]:
    """Weights and pixels that float32 holds exactly, labels as predicted but for one."""
    network = random_network(seeded(seed)).to(dtype=torch.float32).to(dtype=torch.float64)
    x = uniform((8, *network.in_shape), seeded(seed + 1)).float().double()
    labels = network.logits(x).argmax(1)
    labels[0] = (labels[0] + 1) % network.classes
    return network, x, labels


def wide_case() -> tuple[Network, torch.Tensor, torch.Tensor]:
    """Matrices so large that their norms are found by coins."""
    builder, generator, node = NetworkBuilder((1, 6)), seeded(5), 0
    for before, after in ((6, 160), (160, 140), (140, 3)):
        weight = (uniform((after, before), generator) - 0.5) / before**0.5
        operator = Dense.of(weight, torch.zeros(after, dtype=torch.float64), (1, before))
        node = builder.operator(operator, node)
        node = builder.activation(relu(), node) if after > 3 else node
    network = builder.build(node).to(dtype=torch.float32).to(dtype=torch.float64)
    x = uniform((6, *network.in_shape), seeded(6)).float().double()
    return network, x, network.logits(x).argmax(1)


def certify(
    found: tuple[Network, torch.Tensor, torch.Tensor], *eps: str, **others: object
) -> list[Sample]:
    network, x, labels = found
    options = Options(tuple(map(Epsilon.parse, eps)), **others)  # type: ignore[arg-type]
    return Certifier(network, options, samples=len(x), key=11)(x, labels, range(len(x)))


@pytest.mark.parametrize(
    ("method", "effort"),
    [("global", "fast"), ("local", "fast"), ("auto", "fast"), ("auto", "standard")],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_certificate_is_broken(seed: int, method: str, effort: str) -> None:
    network, x, labels = case(seed)
    samples = certify((network, x, labels), *EPS, method=method, effort=effort, radii=False)
    radius = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    assert samples[0].verdict == "misclassified"
    assert (radius > 0).any()
    known = [Epsilon.parse(text).rounded_up for text in EPS]
    assert all(sample.radius in (0.0, *known) for sample in samples)
    found = smallest_margins(network, x, labels, radius, steps=25, seed=seed)
    assert (found[radius > 0] > 0).all()
    single, generator = network.to(dtype=torch.float32), seeded(seed)
    for _ in range(20):
        point = in_ball(x, radius * (1 - 1e-6), generator).float()
        assert (margins(single, point, labels)[radius > 0] > 0).all()


@pytest.mark.parametrize("method", ["global", "local", "auto"])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_certified_with_radii_is_so_without(seed: int, method: str) -> None:
    """Also where norms are found by coins, and first roughly."""
    for found in (case(seed), wide_case()):
        given = {"method": method, "effort": "fast"}
        both = [certify(found, *EPS, **given, radii=radii) for radii in (True, False)]
        for with_radii, without in zip(*both, strict=True):
            assert set(with_radii.certified) <= set(without.certified)


def test_no_norm_is_proven_where_it_decides_nothing() -> None:
    far, near = certify(wide_case(), "50", method="local", radii=False), "0.01"
    assert {sample.failure_probability for sample in far} == {0.0}
    # The whole norms say nothing there, those of the sample's own do.
    assert all(sample.lipschitz is not None for sample in far)
    spent = certify(wide_case(), near, "50", method="local")
    assert all(sample.failure_probability > 0 for sample in spent)


@pytest.mark.parametrize("norms", ["deterministic", "estimate"])
def test_every_kind_of_norms_takes_it(norms: str) -> None:
    samples = certify(wide_case(), "1e-4", "9", method="local", norms=norms, radii=False)
    claims = [one.estimated if norms == "estimate" else one.certified for one in samples]
    assert claims == [("1e-4",)] * len(samples)


@pytest.mark.benchmark
def test_a_deep_network_takes_it() -> None:
    """Local norms are prepared before its tube, and once more behind it, where they may decide."""
    builder, generator, node = NetworkBuilder((1, 6)), seeded(3), 0
    for before, after in ((6, 120), *[(120, 120)] * 99, (120, 3)):
        weight = normal((after, before), generator) * (1.5 / before) ** 0.5
        node = builder.operator(Dense.of(weight, None, (1, before)), node)
        node = builder.activation(relu(), node) if after > 3 else node
    network = builder.build(node).to(dtype=torch.float32).to(dtype=torch.float64)
    assert is_deep(network)
    x = uniform((2, *network.in_shape), seeded(4)).float().double()
    found = network, x, network.logits(x).argmax(1)
    samples = certify(found, "1e-9", "3", effort="fast", deployed="real", radii=False)
    assert [sample.certified for sample in samples] == [("1e-9",)] * 2
