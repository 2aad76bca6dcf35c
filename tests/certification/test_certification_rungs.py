"""The laws of rungs, for every one of ``RUNG_CASES``, alone and all together."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from attacks import in_ball, margins, smallest_margins
from laws import RUNG_CASES, random_network, seeded, uniform

from lipcert.certification import Certifier, Findings, Samples
from lipcert.network import Network
from lipcert.options import Epsilon, Options

LEVELS = ("0.001", "0.1")


def case(seed: int, batch: int = 2) -> tuple[Network, torch.Tensor, torch.Tensor]:
    """Weights and pixels that float32 holds exactly, labels as predicted."""
    network = random_network(seeded(seed)).to(dtype=torch.float32).to(dtype=torch.float64)
    x = uniform((batch, *network.in_shape), seeded(seed + 1)).float().double()
    return network, x, network.logits(x).argmax(1)


def certifier(name: str, network: Network, samples: int) -> Certifier:
    method = "local" if name == "local" else "auto"
    options = Options(tuple(map(Epsilon.parse, LEVELS)), method=method, seed=7)
    return Certifier(network, options, samples=samples, rungs=RUNG_CASES[name])


@pytest.mark.parametrize("name", RUNG_CASES)
@pytest.mark.parametrize("seed", range(2))
def test_no_certificate_of_a_rung_is_broken(name: str, seed: int) -> None:
    """In real numbers, and in float32 as deployed."""
    network, x, labels = case(seed)
    run = certifier(name, network, len(x))
    samples = run(x, labels, range(len(x)))
    radii = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    assert bool((radii > 0).any()) == (name != "attack")
    held = radii > 0
    assert bool((smallest_margins(network, x, labels, radii, seed=seed)[held] > 0).all())
    single, generator = network.to(dtype=torch.float32), seeded(seed)
    for _ in range(20):
        point = in_ball(x, radii * (1 - 1e-6), generator).float()
        assert bool((margins(single, point, labels)[held] > 0).all())
    # What was spent of the failure probability is within what was asked for.
    spent = sum(sample.failure_probability for sample in samples)
    assert 0 <= spent + run.global_failure_probability <= run.options.failure_probability
    assert {sample.method for sample in samples} <= {*run.rungs, "local"}


@pytest.mark.parametrize("name", RUNG_CASES)
def test_a_rung_changes_nothing_that_it_is_given(name: str) -> None:
    network, x, labels = case(0)
    run = certifier(name, network, len(x))
    allowance = run.budget.open(torch.arange(len(x)))
    samples = Samples.of(run.analysis, x, labels, allowance)
    known = Findings.of(x, samples.logits, labels, run.options)
    for rung in run.ladder:
        before = {
            (field.name, of): value.clone()
            for of in (known, samples)
            for field in fields(of)
            if isinstance(value := getattr(of, field.name), torch.Tensor)
        }
        found = known.after(rung.climb(samples, known))
        for (field, of), value in before.items():
            assert torch.equal(value.nan_to_num(), getattr(of, field).nan_to_num()), field
        known = found


@pytest.mark.parametrize("name", RUNG_CASES)
def test_no_rung_certifies_what_is_classified_wrongly_or_no_number(name: str) -> None:
    network, x, labels = case(1)
    x[1] = torch.nan
    wrong = (labels + 1) % network.classes
    samples = certifier(name, network, len(x))(x, wrong, range(len(x)))
    assert [sample.verdict for sample in samples] == ["misclassified", "error"]
    assert all(sample.radius == 0 and not sample.certified for sample in samples)
