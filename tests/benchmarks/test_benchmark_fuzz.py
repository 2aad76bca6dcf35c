"""Attacked certificates, as many as asked: random networks with adversarial weights, real networks.

LIPCERT_FUZZ_SAMPLES=100000 pytest -m benchmark tests/benchmarks/test_benchmark_fuzz.py -s

Every seed is one network, and gives the same in every run. ``LIPCERT_FUZZ_FIRST`` is the first
seed: where a run was stopped, or another one beside it begins.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from fuzz import IN_SHAPE, SPOILS, Evaluate, samples_of, spoiled_network
from fuzz_tally import Tally
from laws import seeded
from shared import MODELS, data_of, index, network_of
from threats import Threat, eps_within, neighbours, radii, seeing_any_window
from torch import Generator, Tensor

from lipcert.certificate import Sample
from lipcert.certification.pace import PACES
from lipcert.errors import InternalError
from lipcert.network import Network

pytestmark = pytest.mark.benchmark

WANTED = int(os.environ.get("LIPCERT_FUZZ_SAMPLES", "5000"))
FIRST = int(os.environ.get("LIPCERT_FUZZ_FIRST", "0"))
# What a seed gives, by its remainder: a real network, or samples of a random one by method, beside
# those of ``global``. A call costs nearly the same for few of them as for many.
SHARES: list[dict[str, int] | None] = [
    None,
    {"auto fast": 140, "auto standard": 64, "auto max": 40},
    {"local fast": 150},
    {},
    {"auto fast": 100},
    {},
]
_GLOBAL, _BASES = 350, 2
# Of the standard effort's samples, those that a fast one gave no radius: splits in vain. Where it
# gave too few of them one, a network is not worth an expensive call.
_UNLIKELY, _ENOUGH = 2, 12
# Networks for expensive methods: leaves of a few neurons can be enough.
_SMALLER = (1, 2, 3, 3)
_EPS = ("1e-4", "0.02")
# Margins are split into fewer leaves than by the effort itself, which spends minutes in vain.
_MAX_LEAVES = 200
# Images of real networks by method.
_SMALL = {
    "global fast": 900, "local fast": 60, "auto fast": 40, "auto standard": 12, "auto max": 2,
}  # fmt: skip
_LARGE = {"global fast": 30, "local fast": 10, "auto fast": 10}
REAL = {
    "mnist_784_64_10_gloro": _SMALL, "mnist_fc_256x2": _SMALL, "mnist_relu_3_50_eran": _SMALL,
    "mnist_fc_3layer_autolirpa": _SMALL, "mnist_kw_linf01": _LARGE,
    "cifar10_kw_small_l2_36": _LARGE, "mnist_convnet_maxpool": _LARGE,
    "mnist_sigmoid_6x200_eran": _LARGE,
}  # fmt: skip
_IMAGES = 10_000


class Run:
    """Certifies and attacks samples of one network."""

    def __init__(
        self, tally: Tally, name: str, weights: str, network: Network, threat: Threat,
        evaluations: dict[str, Evaluate], generator: Generator, **attack: int,
    ) -> None:  # fmt: skip
        self.tally, self.name, self.weights, self.network = tally, name, weights, network
        self.threat, self.evaluations, self.generator = threat, evaluations, generator
        self.attack = attack

    def __call__(
        self, method: str, x: Tensor, labels: Tensor, eps: tuple[str, ...] | list[str] = _EPS
    ) -> list[Sample]:
        """The samples; none where the network is refused."""
        tally, threat = self.tally, self.threat
        tally.print_now_and_then(self.name)
        try:
            with tally.timed(tally.certify, method, self.name):
                samples = threat.certified(self.network, x, labels, method, eps)
        except InternalError as error:
            tally.broken.append(f"{self.name}, {method}, {threat}, eps {eps}: {error}")
            return []
        if samples is None:
            tally.refused += 1
            return []
        tally.tried[method] += len(samples)
        radius = radii(samples)
        rows = (radius > 0).nonzero().flatten()
        if len(rows):
            with tally.timed(tally.attack, method, self.name):
                outcome = threat.attacked(
                    self.network, self.evaluations, x[rows], labels[rows], radius[rows],
                    self.generator, **self.attack,
                )  # fmt: skip
            sure = [samples[row] for row in rows.tolist()]
            tally.add(self.name, self.weights, method, threat, sure, x[rows], outcome)
        return samples


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """So that a run that is told to end says what it has done."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_certificate_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for effort, pace in seeing_any_window(PACES).items():
        # Small networks have windows too.
        monkeypatch.setitem(PACES, effort, pace)
    monkeypatch.setitem(PACES, "max", replace(PACES["max"], leaves=_MAX_LEAVES))
    tally, seed = Tally(), FIRST
    try:
        with terminated_as_interrupted(), tally.watched():
            while tally.total < WANTED:
                shares = SHARES[seed % len(SHARES)]
                if shares is not None:
                    _random_network(tally, seed, shares)
                elif (MODELS / "index.json").is_file():
                    _real_network(tally, seed)
                seed += 1
    finally:
        # What was done counts even where the run is stopped.
        tally.report(f"seeds from {FIRST} to before {seed}")
    assert not tally.broken


def _random_network(tally: Tally, seed: int, shares: dict[str, int]) -> None:
    generator, kind = seeded(seed), list(SPOILS)[seed % len(SPOILS)]
    in_shape = _SMALLER if "auto max" in shares else IN_SHAPE
    network = spoiled_network(generator, kind, blocks=1 + seed % 2, in_shape=in_shape)
    x, labels = samples_of(network, generator, _GLOBAL)
    threat = Threat.drawn(generator)
    evaluations = threat.evaluations(network, generator)
    # One sample at a time costs too much for thousands.
    evaluations.pop("apart")
    run = Run(tally, f"seed {seed}, {kind}", kind, network, threat, evaluations, generator)
    if not run("global fast", x, labels):
        return
    for method in ("local fast", "auto fast"):
        if method in shares:
            rows = torch.randperm(len(x), generator=generator)[: shares[method]]
            samples = run(method, x[rows], labels[rows])
    if "auto standard" in shares:
        sure = radii(samples) > 0
        if sure.sum() < _ENOUGH:
            return
        unlikely = rows[~sure][:_UNLIKELY]
        rows = torch.cat([unlikely, rows[sure]])[: shares["auto standard"]]
        x, labels = x[rows], labels[rows]
        samples = run("auto standard", x, labels, eps_within(samples) or _EPS[:1])
        near, classes, eps = neighbours(
            network, x, samples, generator, bases=_BASES, count=shares["auto max"] // _BASES
        )
        if eps:
            run("auto max", near, classes, eps)


def _real_network(tally: Tally, seed: int) -> None:
    """Other images for every seed, until all were taken."""
    generator, number = seeded(seed), seed // len(SHARES)
    name = list(REAL)[number % len(REAL)]
    entry, shares = index()[name], REAL[name]
    data, network = data_of(entry), network_of(entry)[1]
    count = max(shares.values())
    images = np.arange(count) + number // len(REAL) * count
    images %= _IMAGES
    x = torch.from_numpy(data.pixels(images)).double()
    labels = torch.from_numpy(data.labels[images])
    threat = Threat.drawn(generator)
    single = network.to(dtype=threat.evaluated)
    evaluations: dict[str, Evaluate] = {"batch": single.logits}
    run = Run(
        tally, f"seed {seed}, {name}", name, network, threat, evaluations, generator, steps=6
    )  # fmt: skip
    for method, share in shares.items():
        run(method, x[:share], labels[:share])
