"""Every bound side by side on real networks, with what an attack leaves.

pytest -m benchmark tests/benchmarks/test_benchmark_auto.py -s
"""

import json
import time
from statistics import fmean

import pytest
import torch
from shared import FOLDER, data_of, index, needs_models, network_of

from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.data import Dataset
from lipcert.network import Network
from lipcert.options import Epsilon, Options

pytestmark = [pytest.mark.benchmark, needs_models]

# network, radii, samples (0: the 200 indices of SDP-CROWN), certified at least, only images or not
CASES = [
    ("cifar10_kw_small_l2_36", "36/255,72/255", 100, (0.56, 0.40), False),
    ("mnist_kw_linf01", "0.1,0.2", 100, (0.96, 0.80), False),
    ("sdpc_mnist_mlp", "1.0", 0, (0.48,), True),
    ("sdpc_cifar10_cnn_a", "24/255", 0, (0.52,), False),
    ("sdpc_cifar10_convdeep", "24/255", 0, (0.485,), False),
]


# The same on the indices of SDP-CROWN at the last effort.
MOST = [
    ("sdpc_mnist_mlp", "1.0", 0.515, True),
    ("sdpc_cifar10_cnn_a", "24/255", 0.53, False),
    ("sdpc_cifar10_convdeep", "24/255", 0.495, False),
]


def indices(data: Dataset, limit: int) -> list[int]:
    text = (FOLDER / "data" / "sdp200_indices.json").read_text()
    return list(range(limit)) if limit else json.loads(text)[f"{data.name}_{data.split}"]


def certify(
    data: Dataset, network: Network, options: Options, chosen: list[int]
) -> tuple[list[Sample], float]:
    """The samples, and the processor time of each."""
    certifier = Certifier(network, options, samples=len(chosen))
    begun, samples = time.process_time(), []
    for start in range(0, len(chosen), 25):
        some = chosen[start : start + 25]
        pixels = torch.from_numpy(data.pixels(some))
        samples += certifier(pixels, torch.from_numpy(data.labels[some]), some)
    return samples, (time.process_time() - begun) / len(chosen)


@pytest.mark.parametrize(("name", "radii", "limit", "least", "images"), CASES)
def test_auto_against_the_published_bound(
    name: str, radii: str, limit: int, least: tuple[float, ...], images: bool
) -> None:
    entry = index()[name]
    data, network = data_of(entry), network_of(entry)[1]
    chosen = indices(data, limit)
    eps = tuple(Epsilon.parse(text) for text in radii.split(","))
    best = {}
    print(f"\n{name}, {len(chosen)} images")
    for method in ("global", "local", "auto"):
        options = Options(eps=eps, method=method, pixel_domain=images)  # type: ignore[arg-type]
        samples, seconds = certify(data, network, options, chosen)
        correct = [sample for sample in samples if sample.correct]
        shares = [sum(e.text in s.certified for s in samples) / len(samples) for e in eps]
        best[method] = [sample.radius or 0.0 for sample in correct]
        attacked = [s.attack_radius for s in correct if s.attack_radius not in (None, float("inf"))]
        left = [sum((s.attack_radius or 0) > e.rounded_up for s in correct) / len(samples)
                for e in eps]  # fmt: skip
        print(
            f"  {method:7} certified {' / '.join(f'{share:.1%}' for share in shares):16} mean "
            f"radius {fmean(best[method]):.4f}  {seconds * 1e3:6.0f} CPU-ms a sample"
            + (f"  attack leaves {' / '.join(f'{share:.1%}' for share in left)}, mean "
               f"attack radius {fmean(attacked):.3f}" if method == "auto" else "")
        )  # fmt: skip
    assert all(share >= bar for share, bar in zip(shares, least, strict=True))
    assert fmean(best["auto"]) >= fmean(best["local"])


def test_efforts() -> None:
    """``cifar10_kw_small_l2_36`` at one eps."""
    entry = index()["cifar10_kw_small_l2_36"]
    data, network = data_of(entry), network_of(entry)[1]
    eps, means = Epsilon.parse("36/255"), []
    print("\ncifar10_kw_small_l2_36, 100 images, 36/255")
    for effort in ("fast", "standard"):
        options = Options((eps,), effort=effort)  # type: ignore[arg-type]
        samples, seconds = certify(data, network, options, list(range(100)))
        radii = [sample.radius or 0.0 for sample in samples if sample.correct]
        means.append(fmean(radii))
        print(
            f"  {effort:8} certified {sum(eps.text in s.certified for s in samples)} %  mean "
            f"radius {means[-1]:.4f}  {seconds * 1e3:.0f} CPU-ms a sample"
        )
    assert means[0] <= means[1]


@pytest.mark.parametrize(("name", "radius", "least", "images"), MOST)
def test_max(name: str, radius: str, least: float, images: bool) -> None:
    entry, eps, begun = index()[name], Epsilon.parse(radius), time.perf_counter()
    data, network = data_of(entry), network_of(entry)[1]
    options = Options((eps,), effort="max", pixel_domain=images)
    samples, seconds = certify(data, network, options, indices(data, 0))
    share = sum(eps.text in sample.certified for sample in samples) / len(samples)
    left = sum((s.attack_radius or 0) > eps.rounded_up for s in samples if s.correct)
    mean = fmean(sample.radius or 0.0 for sample in samples if sample.correct)
    print(
        f"\n{name} at max: certified {share:.1%}, attack leaves {left / len(samples):.1%}, mean "
        f"radius {mean:.4f}; {seconds * 1e3:.0f} CPU-ms a sample, "
        f"{time.perf_counter() - begun:.0f} s in all"
    )
    assert share >= least
