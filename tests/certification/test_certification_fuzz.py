"""Random networks of all operators, adversarial weights: certified, then attacked as deployed.

A larger number of the same runs with ``LIPCERT_FUZZ_SAMPLES=100000 pytest -m benchmark
tests/benchmarks/test_benchmark_fuzz.py -s``.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from assault import assault
from fuzz import SPOILS, exported, runtime, samples_of, spoiled_network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws import seeded
from threats import METHODS, Threat, gaps, neighbours, radii, seeing_any_window

import lipcert
from lipcert.certificate import Sample
from lipcert.certification.pace import PACES
from lipcert.network import Network


@pytest.fixture(autouse=True)
def _any_window_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks have them too."""
    for effort, pace in seeing_any_window(PACES).items():
        monkeypatch.setitem(PACES, effort, pace)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(sorted(SPOILS)),
    st.sampled_from([method for method in METHODS if method != "auto max"]),
)  # fmt: skip
def test_no_certificate_is_broken_as_deployed(seed: int, kind: str, method: str) -> None:
    generator = seeded(seed)
    network, threat = spoiled_network(generator, kind), Threat.drawn(generator)
    x, labels = samples_of(network, generator, 10)
    samples = threat.certified(network, x, labels, method, ["1e-3"])
    # Of a weight that float32 does not hold nothing is certified.
    assume(samples is not None)
    _attack(threat, network, x, labels, samples, generator)


def test_what_only_the_last_rungs_certify_is_not_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All leaves of the effort take long where they are in vain.
    monkeypatch.setitem(PACES, "max", replace(PACES["max"], leaves=300))
    generator, threat = seeded(3), Threat(pixel_domain=True)
    network = spoiled_network(generator, "dead", blocks=2)
    x, labels = samples_of(network, generator, 12)
    samples = threat.certified(network, x, labels, "auto standard", ["1e-3"])
    assert samples is not None
    x, labels, eps = neighbours(network, x, samples, generator, bases=1, count=4)
    samples = threat.certified(network, x, labels, "auto max", eps)
    assert samples is not None
    assert any(sample.method in ("refined", "split") for sample in samples)
    _attack(threat, network, x, labels, samples, generator)


def _attack(
    threat: Threat, network: Network, x: torch.Tensor, labels: torch.Tensor,
    samples: list[Sample], generator: torch.Generator,
) -> None:  # fmt: skip
    radius = radii(samples)
    sure = radius > 0
    if bool(sure.any()):
        evaluations = threat.evaluations(network, generator)
        outcome = threat.attacked(
            network, evaluations, x[sure], labels[sure], radius[sure], generator
        )
        assert not outcome.broken.any()
        assert (outcome.ratio > 1).all()


@pytest.mark.parametrize("threat", [Threat(), Threat("real", pixel_domain=True)], ids=str)
def test_attacks_do_break_what_is_not_certified(threat: Threat) -> None:
    """The attack itself: at ten times the certified radius hardly any sample is safe, and a little
    further out than the certifier's own attack found a flip none but a few."""
    generator = seeded(5)
    network = spoiled_network(generator, "plain")
    x, labels = samples_of(network, generator, 40)
    samples = threat.certified(network, x, labels, "auto fast", ["1e-3"])
    evaluations = threat.evaluations(network, generator)
    outcome = threat.attacked(network, evaluations, x, labels, 10 * radii(samples), generator)
    assert outcome.broken.float().mean() > 0.5
    reached = radii(samples) * gaps(samples)
    known = reached.isfinite()
    assert known.sum() >= 20
    outcome = threat.attacked(
        network, evaluations, x[known], labels[known], 1.05 * reached[known], generator
    )
    assert outcome.broken.float().mean() > 0.9
    moved = (outcome.points - x[known]).flatten(1).norm(dim=1)
    assert (moved <= 1.05 * reached[known]).all()
    if threat.pixel_domain:
        assert ((outcome.points >= 0) & (outcome.points <= 1)).all()


@pytest.mark.parametrize(
    ("seed", "kind"), [(0, "plain"), (1, "cancelling"), (2, "ill-conditioned")]
)
def test_certificates_of_files_hold_in_the_runtime(seed: int, kind: str, tmp_path: Path) -> None:
    """The public API on exported files."""
    generator = seeded(seed)
    network = spoiled_network(generator, kind)
    x, labels = samples_of(network, generator, 12)
    model, path = exported(network), tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    pixels = x.flatten(1)
    result = lipcert.certify(
        lipcert.load(path), pixels.float(), labels, "1e-3", effort="fast", threads=1
    )
    radius = torch.tensor([sample.radius for sample in result.samples], dtype=torch.float64)
    sure = radius > 0
    assert sure.any()
    evaluations = {"onnxruntime": runtime(model)}
    outcome = assault(network, evaluations, x[sure], labels[sure], radius[sure], generator)
    assert not outcome.broken.any()
