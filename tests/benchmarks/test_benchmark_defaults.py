"""``lipcert finetune`` with no option of training, on networks that others trained.

pytest -m benchmark tests/benchmarks/test_benchmark_defaults.py -s

Certified accuracy rises, and clean accuracy falls by less than that. ``LIPCERT_DATA_DIR`` needs the
training images of MNIST and CIFAR-10. ``LIPCERT_TEST_PRESET`` is quick if not given,
``LIPCERT_TEST_LIMIT`` so many test images, 100 if not given, and ``LIPCERT_TEST_EFFORT`` standard.
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

NETWORKS = {
    "mnist_convsmall_point_eran": "0.5",
    "mnist_relu_3_50_eran": "0.5",
    "cifar10_wide_sgd": "36/255",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_alone_make_networks_certify(name, tmp_path):
    entry = index()[name]
    try:
        load_dataset(entry["dataset"], split="train", offline=True)
    except LipcertError:
        pytest.skip(f"the training images of {entry['dataset']} are not in LIPCERT_DATA_DIR")
    declared = [f"--{key}={','.join(map(str, entry[key]))}" for key in ("mean", "std")]
    preset = os.environ.get("LIPCERT_TEST_PRESET", "quick")
    limit = os.environ.get("LIPCERT_TEST_LIMIT", "100")
    effort = os.environ.get("LIPCERT_TEST_EFFORT", "standard")
    done = main([
        "finetune", str(Path(MODELS) / f"{name}.onnx"), "--data", entry["dataset"], *declared,
        "--eps", NETWORKS[name], "--preset", preset, "--limit", limit, "--effort", effort,
        "--threads", "1", "--output", str(tmp_path / "tuned"),
    ])  # fmt: skip
    assert done == 0
    found = json.loads((tmp_path / "tuned" / "recipe.json").read_text())
    before, after = found["results"]["before"], found["results"]["after"]
    print(f"\n{name}: clean {before['clean']:.2%} to {after['clean']:.2%}, certified "
          f"{before['certified']:.2%} to {after['certified']:.2%}")  # fmt: skip
    assert after["certified"] - before["certified"] > max(0.0, before["clean"] - after["clean"])
