"""Attacked certificates, as many as asked: random networks with adversarial weights, real networks.

LIPCERT_FUZZ_SAMPLES=100000 pytest -m benchmark tests/benchmarks/test_benchmark_fuzz.py -s
"""

import math
import os
import time
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from fuzz import (
    SPOILS,
    Evaluate,
    assault,
    deployed,
    exported,
    runtime,
    samples_of,
    spoiled_network,
)  # fmt: skip
from laws import pick, seeded
from shared import data_of, index, needs_models, network_of

from lipcert.certification import Certifier
from lipcert.errors import CannotCertify
from lipcert.network import Network
from lipcert.options import Epsilon, Options

pytestmark = pytest.mark.benchmark

WANTED = int(os.environ.get("LIPCERT_FUZZ_SAMPLES", "5000"))
# Samples of each network that each method certifies: as many as its cost allows.
SHARES = {"global fast": 1500, "local fast": 400, "auto fast": 100, "auto standard": 10}
REAL = ["mnist_784_64_10_gloro", "mnist_fc_256x2", "mnist_convnet_maxpool", "mnist_kw_linf01",
        "cifar10_kw_small_l2_36", "mnist_sigmoid_6x200_eran"]  # fmt: skip
_EPS = (Epsilon.parse("1e-4"), Epsilon.parse("0.02"))


class Tally:
    """What was attacked so far, and the worst of it."""

    def __init__(self) -> None:
        self.certified: Counter[str] = Counter()
        self.dtypes: Counter[str] = Counter()
        self.broken: list[str] = []
        self.refused = 0
        self.margin, self.ratio, self.close = math.inf, math.inf, 0

    def add(
        self, name: str, network: Network, evaluations: dict[str, Evaluate], x: torch.Tensor,
        labels: torch.Tensor, method: str, generator: torch.Generator, *, dtype: str = "float64",
        **attack: int,
    ) -> None:  # fmt: skip
        kind, effort = method.split()
        options = Options(_EPS, method=kind, effort=effort, dtype=dtype)  # type: ignore[arg-type]
        try:
            certifier, radii = Certifier(network, options, samples=len(x)), []
        except CannotCertify as refusal:
            if "overflows" not in str(refusal):
                raise
            self.refused += 1
            return
        for rows in torch.arange(len(x)).split(1000):
            samples = certifier(x[rows], labels[rows], rows.tolist())
            radii += [sample.radius or 0.0 for sample in samples]
        radius = torch.tensor(radii, dtype=torch.float64)
        sure = radius > 0
        if not bool(sure.any()):
            return
        outcome = assault(
            network, evaluations, x[sure], labels[sure], radius[sure], generator, **attack
        )
        self.certified[method] += int(sure.sum())
        self.dtypes[dtype] += int(sure.sum())
        self.margin = min(self.margin, float(outcome.margin.min()))
        self.ratio = min(self.ratio, float(outcome.ratio.min()))
        self.close += int((outcome.ratio < 1.1).sum())
        for row in outcome.broken.nonzero().flatten().tolist():
            self.broken.append(f"{name}, {method}, {dtype}, sample {sure.nonzero()[row].item()}")

    def report(self, what: str, begun: float) -> None:
        each = ", ".join(f"{method} {count}" for method, count in self.certified.items())
        print(
            f"\n{what}: {self.certified.total()} certificates attacked ({each}), "
            f"{len(self.broken)} broken\n  least margin over the largest logit {self.margin:.2e}, "
            f"nearest flip at {self.ratio:.5f} of a certified radius, {self.close} below 1.1; "
            f"{time.process_time() - begun:.0f} CPU-seconds"
        )
        types = ", ".join(f"{dtype} {count}" for dtype, count in self.dtypes.items())
        print(f"  analysed in {types}; {self.refused} runs refused for weights that overflow")
        for line in self.broken[:20]:
            print(f"  BROKEN {line}")


def test_random_networks() -> None:
    tally, begun, seed = Tally(), time.process_time(), 0
    kinds: Counter[str] = Counter()
    try:
        while tally.certified.total() < WANTED:
            kind = list(SPOILS)[seed % len(SPOILS)]
            kinds[kind] += _one_network(tally, seed, kind)
            seed += 1
    finally:
        # What was done counts even where the run is stopped.
        tally.report(f"{seed} random networks", begun)
        print("  by kind of weights: " + ", ".join(f"{k} {n}" for k, n in kinds.items()))
    assert not tally.broken


def _one_network(tally: Tally, seed: int, kind: str) -> int:
    """How many certificates it gave."""
    generator, before = seeded(seed), tally.certified.total()
    network = spoiled_network(generator, kind, blocks=1 + seed % 2)
    x, labels = samples_of(network, generator, max(SHARES.values()))
    evaluations = deployed(network, generator) | {"onnxruntime": runtime(exported(network))}
    # One sample at a time costs too much for thousands.
    evaluations.pop("apart")
    dtype = pick(["float64", "float32"], generator)
    for method, count in SHARES.items():
        rows = torch.randperm(len(x), generator=generator)[: min(count, WANTED)]
        name = f"seed {seed}, {kind}"
        tally.add(name, network, evaluations, x[rows], labels[rows], method, generator, dtype=dtype)
    return tally.certified.total() - before


@needs_models
def test_real_networks() -> None:
    tally, begun = Tally(), time.process_time()
    images = np.arange(max(10, min(200, WANTED // 500)))
    for number, name in enumerate(REAL):
        entry, generator = index()[name], seeded(number)
        data, network = data_of(entry), network_of(entry)[1]
        x, labels = torch.from_numpy(data.pixels(images)), torch.from_numpy(data.labels[images])
        single = network.to(dtype=torch.float32)
        evaluations: dict[str, Evaluate] = {
            "batch": lambda points, single=single: single.logits(points),
            "apart": lambda points, single=single: torch.cat(
                [single.logits(part) for part in points.split(1)]
            ),
        }
        for method, dtype in product(
            ("global fast", "local fast", "auto fast"), ("float64", "float32")
        ):
            tally.add(
                name, network, evaluations, x, labels, method, generator, dtype=dtype, steps=6
            )
    tally.report(f"{len(REAL)} real networks, {len(images)} images each", begun)
    assert not tally.broken
