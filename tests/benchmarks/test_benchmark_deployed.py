"""What covering the deployed arithmetic costs, and what the float64 analysis charges itself.

pytest -m benchmark tests/benchmarks/test_benchmark_deployed.py -s
"""

import time
from statistics import fmean, median

import numpy as np
import onnxruntime
import pytest
import torch
from attacks import in_ball
from shared import data_of, index, needs_models, network_of

from lipcert.bounds.objectives import margin_objectives
from lipcert.bounds.state import select
from lipcert.certification import Certifier
from lipcert.certification.deployed import Deployment
from lipcert.certification.rungs.dual import DualRadius
from lipcert.certification.samples import Samples
from lipcert.options import Epsilon, Options
from lipcert.rounding import FORMATS

pytestmark = [pytest.mark.benchmark, needs_models]

# network, radius, samples, the most that float32 may cost of the mean radius
CASES = [
    ("cifar10_kw_small_l2_36", "36/255", 100, 0.02),
    ("mnist_cnn_a_adv", "0.3", 100, 0.02),
    ("sdpc_cifar10_cnn_a", "24/255", 40, 0.02),
    ("sdpc_cifar10_convdeep", "24/255", 40, 0.02),
    ("sdpc_mnist_mlp", "1.0", 40, 0.02),
]


@pytest.mark.parametrize(("name", "eps", "limit", "most"), CASES)
def test_what_float32_costs(name: str, eps: str, limit: int, most: float) -> None:
    entry = index()[name]
    data, network = data_of(entry), network_of(entry)[1]
    chosen = list(range(limit))
    radius = {}
    print(f"\n{name}, first {limit} images, {eps}")
    for deployed in ("real", "float32"):
        given = Options(eps=(Epsilon.parse(eps),), deployed=deployed)
        certifier = Certifier(network, given, samples=limit)
        begun, samples = time.process_time(), []
        for start in range(0, limit, 25):
            some = chosen[start : start + 25]
            pixels, labels = torch.from_numpy(data.pixels(some)), data.labels[some]
            samples += certifier(pixels, torch.from_numpy(labels), some)
        right = [sample for sample in samples if sample.correct]
        radius[deployed] = fmean(sample.radius or 0.0 for sample in right)
        error = median(sample.deployed_error for sample in right)
        share = median(sample.deployed_error / sample.margin for sample in right)
        seconds = (time.process_time() - begun) / limit
        print(
            f"  {deployed:8} certified {sum(bool(s.certified) for s in samples)}, mean radius "
            f"{radius[deployed]:.5f}, median error {error:.1e} ({share:.1e} of the margin), "
            f"{seconds:.2f} CPU-s a sample"
        )
    cost = 1 - radius["float32"] / radius["real"]
    print(f"  float32 costs {cost:.2%} of the mean radius")
    assert cost < most


@pytest.mark.parametrize("name", [name for name, *_ in CASES])
def test_float64_takes_next_to_nothing_of_a_margin(name: str) -> None:
    """All charges of the analysis at the radius asked for, against the margins at the samples."""
    entry = index()[name]
    eps = next(Epsilon.parse(radius) for case, radius, *_ in CASES if case == name)
    data, network = data_of(entry), network_of(entry)[1]
    pixels = torch.from_numpy(data.pixels(list(range(20)))).double()
    labels = network.to(dtype=torch.float64).logits(pixels).argmax(1)
    given = Options(eps=(eps,), deployed="real", effort="fast")
    certifier = Certifier(network, given, samples=20)
    analysis, radius = certifier.analysis, torch.full((20,), eps.rounded_up, dtype=torch.float64)
    rows = torch.arange(20)
    samples = Samples.of(analysis, pixels, labels, certifier.budget.open(rows)).anchored
    (duals,) = {rung.duals for rung in certifier.ladder if isinstance(rung, DualRadius)}
    centre, deployed = samples.centre, analysis.deployment
    pair = deployed.pair_errors(deployed.centre(pixels), labels, radius)
    others = (centre.logits.topk(2, 1).indices)[:, 1]
    margin = (centre.logits[rows, labels] - centre.logits[rows, others]).abs()
    forms = margin_objectives(analysis.lowered, rows, labels, others)
    state, dual = duals.prepare(samples, radius, analysis.pace.boxes).state, duals.prover.dual
    found = dual.start(select(state, rows), forms)
    plain, proven = (
        bound(select(state, rows), forms, found) for bound in (dual.change, dual.certified)
    )
    terms = {
        "fused coefficients": pair[rows, others],
        "logits": centre.logit_errors[rows, labels] + centre.logit_errors[rows, others],
        "dual": plain - proven,
    }
    total = sum(terms.values())
    print(f"\n{name}: " + ", ".join(
        f"{term} {float((value / margin).median()):.1e}" for term, value in terms.items()
    ) + f" of the margin; largest {float((total / margin).max()):.1e}")  # fmt: skip
    assert float((total / margin).median()) < 1e-9


@pytest.mark.parametrize("name", [name for name, *_ in CASES])
def test_runtimes_stay_far_within_the_bound(name: str) -> None:
    """onnxruntime with all its fusions, and torch in three formats, at points of the balls."""
    entry = index()[name]
    eps = next(Epsilon.parse(radius) for case, radius, *_ in CASES if case == name)
    data, (loaded, network) = data_of(entry), network_of(entry)
    network = network.to(dtype=torch.float64)
    pixels = torch.from_numpy(data.pixels(list(range(20)))).double()
    radius = torch.full((20,), eps.rounded_up, dtype=torch.float64)
    labels = network.logits(pixels).argmax(1)
    points = in_ball(pixels, radius, torch.Generator().manual_seed(0)).float().double()
    exact = network.values(points)
    runs = {
        kind: network.to(dtype=getattr(torch, kind)).logits(points.to(getattr(torch, kind)))
        for kind in ("float32", "float16", "bfloat16")
    }
    # The file begins where its preprocessing ends.
    first = len(network.nodes) - len(loaded.network.nodes)
    session = onnxruntime.InferenceSession(loaded.path, providers=["CPUExecutionProvider"])
    feed = exact[first].float().numpy().reshape(-1, *loaded.network.in_shape)
    outputs = [session.run(None, {session.get_inputs()[0].name: one})[0] for one in feed]
    runs["onnxruntime"] = torch.from_numpy(np.stack(outputs)).flatten(1)
    told = []
    for kind, logits in runs.items():
        arithmetic = FORMATS.get(kind, FORMATS["float32"])
        deployment = Deployment.of(network, arithmetic=arithmetic, softmax=False)
        allowed = deployment.pair_errors(deployment.centre(pixels), labels, radius)
        gap = _margins(logits.double(), labels) - _margins(exact[-1].flatten(1), labels)
        assert (gap.abs() <= allowed).all()
        told.append(f"{kind} {float(gap.abs().amax(1).median()):.1e} of "
                    f"{float(allowed.amax(1).median()):.1e}")  # fmt: skip
    print(f"\n{name}: largest error of a margin, of what is allowed: {', '.join(told)}")


def _margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, labels[:, None]) - logits
