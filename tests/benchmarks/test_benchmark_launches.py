"""Kernels that a GPU would start and waits for it, a sample, by the line that asks for them.

Counted on the pretend device (``tests/pretend.py``), which computes on the CPU: figures follow from
the code alone, with the chunks of a device of 16 GiB (``lipcert.chunks``). ``LIPCERT_TEST_BATCH``
samples are certified at once, after two others: what a network is asked once is not a batch's.
The bars are for batches of 256; what a batch asks for hardly depends on its size.
"""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from benchmarks.shared import data_of, dataset, index, needs_models, network_of
from pretend import Pretend, lines

from lipcert.certification import Certifier
from lipcert.loading import load_model
from lipcert.loading.architectures import build
from lipcert.options import Epsilon, Options

BATCH, BAR_AT = int(os.environ.get("LIPCERT_TEST_BATCH", "32")), 256


def fresh_6c2f():
    """As a training from scratch begins with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "6c2f.onnx"
        path.write_bytes(build("6c2f", (3, 32, 32), 10, 0).SerializeToString())
        return load_model(path).network, dataset("cifar10")


def pretrained(name):
    entry = index()[name]
    return network_of(entry)[1], data_of(entry)


@needs_models
@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "eps", "effort", "most"),
    [
        ("cifar10_kw_small_l2_36", "36/255", "standard", 600),
        ("cifar10_kw_small_l2_36", "36/255", "fast", 200),
        ("6c2f", "36/255", "fast", 200),
    ],
)
def test_launches_and_waits_a_sample(name, eps, effort, most):
    network, data = fresh_6c2f() if name == "6c2f" else pretrained(name)
    chosen, options = range(2, BATCH + 2), Options((Epsilon.parse(eps),), effort=effort)
    with Pretend() as device:
        certifier = Certifier(network, options, samples=BATCH + 2, device=device.name, key=7)

        def certify(some):
            pixels = torch.from_numpy(data.pixels(some))
            return certifier(pixels, torch.from_numpy(data.labels[some]), some)

        certify(range(2))
        device.reset()
        certify(chosen)
    launches, waits = device.launches.total(), device.waits.total()
    print(f"\n{name}, {effort}, {BATCH} at once: {launches / BATCH:.0f} launches a sample, "
          f"{launches} and {waits} waits a batch")  # fmt: skip
    print("launches a sample", *lines(device.launches, BATCH), sep="\n")
    print("waits a batch", *lines(device.waits), sep="\n")
    # A smaller batch asks for no more than a larger one.
    assert launches < most * max(BATCH, BAR_AT)
    assert waits < 400
