"""Random networks of all operators, adversarial weights: certified, then attacked as deployed.

A larger number of the same runs with ``LIPCERT_FUZZ_SAMPLES=100000 pytest -m benchmark
tests/benchmarks/test_benchmark_fuzz.py -s``.
"""

from pathlib import Path

import pytest
import torch
from assault import assault
from fuzz import SPOILS, deployed, exported, runtime, samples_of, spoiled_network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws import seeded

import lipcert
from lipcert.certification import Certifier
from lipcert.errors import CannotCertify
from lipcert.options import Epsilon, Options

METHODS = [("local", "standard"), ("auto", "fast"), ("auto", "standard")]
DTYPES = ["float64", "float32"]


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(sorted(SPOILS)), st.sampled_from(METHODS),
    st.sampled_from(DTYPES),
)  # fmt: skip
def test_no_certificate_is_broken_as_deployed(
    seed: int, kind: str, method: tuple[str, str], dtype: str
) -> None:
    generator = seeded(seed)
    network = spoiled_network(generator, kind)
    x, labels = samples_of(network, generator, 10)
    evaluations = deployed(network, generator) | {"onnxruntime": runtime(exported(network))}
    options = Options(
        (Epsilon.parse("1e-3"),), method=method[0], effort=method[1], dtype=dtype,  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        certifier = Certifier(network, options, samples=len(x))
    except CannotCertify as refusal:
        # Of a weight that float32 does not hold nothing is certified.
        assume("overflows" not in str(refusal))
        raise
    samples = certifier(x, labels, range(len(x)))
    radius = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    sure = radius > 0
    if bool(sure.any()):
        outcome = assault(network, evaluations, x[sure], labels[sure], radius[sure], generator)
        assert not outcome.broken.any()
        assert (outcome.ratio > 1).all()


def test_attacks_do_break_what_is_not_certified() -> None:
    """The attack itself: at ten times the certified radius, hardly any sample is safe."""
    generator = seeded(5)
    network = spoiled_network(generator, "plain")
    x, labels = samples_of(network, generator, 40)
    options = Options((Epsilon.parse("1e-3"),), effort="fast")
    samples = Certifier(network, options, samples=len(x))(x, labels, range(len(x)))
    radius = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    outcome = assault(network, deployed(network, generator), x, labels, 10 * radius, generator)
    assert outcome.broken.float().mean() > 0.5


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
