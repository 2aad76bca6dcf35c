"""Kernels that a GPU would start and waits for it, a sample, by the line that asks for them.

Counted on the pretend device (``tests/pretend.py``), which computes on the CPU: figures follow from
the code alone. ``LIPCERT_TEST_BATCH`` samples are certified at once.
"""

import os

import pytest
import torch
from benchmarks.shared import data_of, index, needs_models, network_of
from pretend import Pretend, lines

from lipcert.certification import Certifier
from lipcert.options import Epsilon, Options

BATCH = int(os.environ.get("LIPCERT_TEST_BATCH", "32"))


@needs_models
@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "eps", "effort"),
    [
        ("cifar10_kw_small_l2_36", "36/255", "standard"),
        ("cifar10_kw_small_l2_36", "36/255", "fast"),
    ],
)
def test_launches_and_waits_a_sample(name, eps, effort):
    entry = index()[name]
    _, network = network_of(entry)
    data, chosen = data_of(entry), range(BATCH)
    options = Options((Epsilon.parse(eps),), effort=effort)
    with Pretend() as device:
        certifier = Certifier(network, options, samples=BATCH, device=device.name, key=7)
        device.reset()
        pixels = torch.from_numpy(data.pixels(chosen))
        certifier(pixels, torch.from_numpy(data.labels[chosen]), chosen)
    launches, waits = device.launches.total(), device.waits.total()
    print(f"\n{name}, {effort}, {BATCH} at once: {launches / BATCH:.0f} launches a sample, "
          f"{launches} and {waits} waits a batch")  # fmt: skip
    print("launches a sample", *lines(device.launches, BATCH), sep="\n")
    print("waits a batch", *lines(device.waits), sep="\n")
    # So many that nobody adds some by mistake: a batch's launches hardly depend on its size.
    assert launches < 400_000
