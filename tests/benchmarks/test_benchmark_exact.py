"""How much of the exact robust radius is certified, on tiny networks where it can be found.

pytest -m benchmark tests/benchmarks/test_benchmark_exact.py -s
"""

from statistics import fmean, median

import pytest
import torch
from certification.test_certification_exact import KINDS, exact_radii, samples_of, tiny_network

from lipcert.certification import Certifier
from lipcert.options import Epsilon, Options

pytestmark = pytest.mark.benchmark

METHODS = [
    ("global", "standard"),
    ("local", "standard"),
    ("auto", "fast"),
    ("auto", "standard"),
    ("auto", "max"),
]
NETWORKS, SAMPLES = 6, 16


@pytest.mark.parametrize("kind", KINDS)
def test_certified_over_exact(kind: str) -> None:
    """Mean and median over all samples whose exact radius is finite; the attack's too."""
    ratios: dict[str, list[float]] = {}
    for seed in range(NETWORKS):
        network = tiny_network(
            seed, kind, inputs=2 + seed % 3, hidden=1 + seed % 3, residual=seed % 2 == 1
        )
        x, labels = samples_of(network, seed, SAMPLES)
        radii, _ = exact_radii(network, x, labels)
        for method, effort in METHODS:
            options = Options((Epsilon.parse("0.1"),), method=method, effort=effort)  # type: ignore[arg-type]
            samples = Certifier(network, options, samples=len(x))(x, labels, range(len(x)))
            name = f"{method} {effort}" if method == "auto" else method
            for sample, exact in zip(samples, radii.tolist(), strict=True):
                assert sample.radius is not None
                assert sample.radius <= exact * (1 + 1e-9)
                if exact < torch.inf:
                    ratios.setdefault(name, []).append(sample.radius / exact)
                    if effort == "max" and sample.attack_radius is not None:
                        ratios.setdefault("attack", []).append(sample.attack_radius / exact)
    print(f"\n{kind}, {len(ratios['local'])} samples of {NETWORKS} networks, shares of the exact")
    for name, values in ratios.items():
        print(f"  {name:14} mean {fmean(values):.3f}  median {median(values):.3f}")
    assert fmean(ratios["auto standard"]) >= fmean(ratios["local"])
