"""``lipcert finetune`` with a budget and no option of tuning, on networks that others trained.

LIPCERT_DATA_DIR=… pytest -m benchmark tests/benchmarks/test_benchmark_defaults.py -s

Certified accuracy rises, and clean accuracy falls by less than that. ``LIPCERT_DATA_DIR`` needs the
training images of MNIST and CIFAR-10. A budget is so many epochs of so many images, so that what
comes out depends on no other program; ``LIPCERT_TEST_BUDGET=3`` has three times the epochs.
``LIPCERT_TEST_LIMIT`` so many test images, 50 if not given, and ``LIPCERT_TEST_EFFORT`` fast.
"""

import json
import os
from pathlib import Path

import pytest
from shared import MODELS, index, needs_models

from lipcert.cli.main import main
from lipcert.data import load_dataset
from lipcert.errors import LipcertError

pytestmark = [pytest.mark.benchmark, needs_models]

# By name: the radius, epochs and training images.
NETWORKS = {
    "mnist_convsmall_point_eran": ("0.5", 2, 20_000),
    "mnist_relu_3_50_eran": ("0.5", 2, 20_000),
    "cifar10_wide_sgd": ("36/255", 4, 30_000),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_alone_make_networks_certify(name, tmp_path):
    entry, (eps, epochs, images) = index()[name], NETWORKS[name]
    data = entry["dataset"].partition("_")[0]
    try:
        load_dataset(data, split="train", offline=True)
    except LipcertError:
        pytest.skip(f"the training images of {data} are not in LIPCERT_DATA_DIR")
    declared = [
        f"--{key}={','.join(map(str, entry[key]))}" for key in ("mean", "std") if entry[key]
    ]
    budget = epochs * int(os.environ.get("LIPCERT_TEST_BUDGET", "1"))
    limit = os.environ.get("LIPCERT_TEST_LIMIT", "50")
    effort = os.environ.get("LIPCERT_TEST_EFFORT", "fast")
    done = main([
        "finetune", str(Path(MODELS) / f"{name}.onnx"), "--data", data, *declared, "--eps", eps,
        "--epochs", str(budget), "--train-limit", str(images), "--limit", limit,
        "--effort", effort, "--threads", "1", "--output", str(tmp_path / "tuned"),
    ])  # fmt: skip
    assert done == 0
    found = json.loads((tmp_path / "tuned" / "recipe.json").read_text())
    before, after = found["results"]["before"], found["results"]["after"]
    print(f"\n{name}: clean {before['clean']:.2%} to {after['clean']:.2%}, certified "
          f"{before['certified']:.2%} to {after['certified']:.2%}")  # fmt: skip
    assert after["certified"] - before["certified"] > max(0.0, before["clean"] - after["clean"])
