"""Counterexamples as they are handed out, and the neurons that balls leave alone."""

import dataclasses

import pytest
import torch
from attacks import in_ball
from certification.made import small_case
from laws import seeded

from lipcert.certification import Certifier, with_eliminated
from lipcert.options import Epsilon, Options


@pytest.mark.parametrize("deployed", ["float32", "real"])
def test_points_are_misclassified_as_deployed_within_the_distance_reported(deployed) -> None:
    dtype = torch.float32 if deployed == "float32" else torch.float64
    number = 0
    for seed in range(2):
        network, x, labels = small_case(seed)
        options = Options((Epsilon.parse("0.01"), Epsilon.parse("2")), effort="fast",
                          deployed=deployed)  # fmt: skip
        found: dict = {}
        certifier = Certifier(network, options, samples=6, counterexamples=found)
        samples = certifier(x, labels, range(10, 16))
        assert list(found) == [s.index for s in samples if s.verdict == "falsified"]
        for index, point in found.items():
            sample, row = samples[index - 10], index - 10
            assert point.shape == x.shape[1:]
            given = torch.from_numpy(point)
            assert given.dtype == dtype
            predicted = network.to(dtype=dtype).logits(given[None]).argmax(1)
            assert int(predicted) != sample.label
            distance = float((given.double() - x[row]).norm())
            assert 0 < distance <= sample.attack_radius <= 2
            number += 1
    assert number >= 3


def test_eliminated_neurons_do_not_vary_and_more_do_in_a_larger_ball() -> None:
    some = False
    for seed in range(3):
        network, x, labels = small_case(seed)
        counts = {}
        for eps in ("1e-6", "0.05", "1"):
            options = Options((Epsilon.parse("0"), Epsilon.parse(eps)), method="local")
            certifier = Certifier(network, options, samples=6)
            samples = certifier(x, labels, range(6))
            norms = certifier.layer_norms
            edges = certifier.published.bound.layers.edges
            counts[eps] = torch.tensor([sample.eliminated for sample in samples])
            assert counts[eps].shape == (6, len(edges))
            network_ = certifier.analysis.simplified
            radius = torch.full((6,), float(eps), dtype=torch.float64)
            generator = seeded(seed)
            for _ in range(5):
                one, two = (network_.values(in_ball(x, radius, generator)) for _ in range(2))
                for number, edge in enumerate(edges):
                    (kind,) = {
                        i for i in network_.activations if network_.nodes[i].inputs[0] == edge.sink
                    }
                    still = (one[kind] == two[kind]).flatten(1).sum(1)
                    assert (counts[eps][:, number] <= still).all()
            layers = with_eliminated(norms, samples)
            assert [layer["eliminated"] is None for layer in layers] == [
                number >= len(edges) for number in range(len(layers))
            ]
            for number, layer in enumerate(layers[: len(edges)]):
                share = counts[eps][:, number].double().mean() / layer["neurons"]
                assert layer["eliminated"] == pytest.approx(float(share))
                assert 0 <= layer["eliminated"] <= 1
        assert (counts["1e-6"] >= counts["0.05"]).all()
        assert (counts["0.05"] >= counts["1"]).all()
        some = some or bool((counts["1"] > 0).any())
    assert some


def test_what_is_not_known_is_not_counted() -> None:
    network, x, labels = small_case(0)
    certifier = Certifier(network, Options((Epsilon.parse("0.1"),), method="global"), samples=6)
    samples = certifier(x, labels, range(6))
    assert {sample.eliminated for sample in samples} == {()}
    assert {layer["eliminated"] for layer in with_eliminated(certifier.layer_norms, samples)} == {
        None
    }
    one = dataclasses.replace(certifier.layer_norms[0], value=float("inf"), neurons=4)
    rows = [dataclasses.replace(samples[0], eliminated=(1,)), samples[1]]
    (layer,) = with_eliminated([one], rows)
    assert (layer["value"], layer["eliminated"]) == (None, 0.25)
