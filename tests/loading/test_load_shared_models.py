"""The 34 pretrained networks of the shared folder, where it is there."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipcert.errors import CannotCertify
from lipcert.loading import (
    cross_check,
    deployed_logits,
    inspect_operators,
    load_model,
    with_preprocessing,
)
from lipcert.network import simplify
from lipcert.network.joints import MatrixProduct, Softmax

SHARED = Path(__file__).parents[3] / "shared"
MODELS = SHARED / "models"
INDEX = json.loads((MODELS / "index.json").read_text()) if MODELS.is_dir() else []
TRANSFORMER = "cifar10_vit_pgd_2_3_16.onnx"

pytestmark = pytest.mark.skipif(not INDEX, reason="the shared models are not there")


@functools.cache
def samples(dataset: str) -> tuple[Any, Any]:
    path = SHARED / "data" / f"{dataset.split()[0]}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    with np.load(path) as held:
        images, labels = held["images"][:20], held["labels"][:20]
    pixels = images.reshape(*images.shape[:3], -1).transpose(0, 3, 1, 2).astype(np.float32) / 255
    return pixels, labels


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["onnx"])
def test_model_is_the_deployed_one(entry: dict[str, Any]) -> None:
    path = MODELS / entry["onnx"]
    pixels, labels = samples(entry["dataset"])
    model = load_model(path)
    network = with_preprocessing(
        model.network,
        image_shape=pixels.shape[1:],
        layout="CWH" if "cora" in path.name else None,
        mean=entry["mean"],
        std=entry["std"],
    )
    check = cross_check(model, network, pixels)
    assert check.max_relative_difference < 1e-5
    if path.name != TRANSFORMER:  # which onnx2torch cannot read
        assert check.onnx2torch is not None
        assert check.onnx2torch < 1e-5
    deployed = deployed_logits(model, network, pixels)
    simple = simplify(network).logits(torch.from_numpy(pixels).double()).numpy()
    np.testing.assert_allclose(simple, deployed, atol=1e-4, rtol=1e-4)
    accuracy = entry.get("accuracy_pct_full_10k")
    if accuracy is not None:
        assert (simple.argmax(1) == labels).mean() > accuracy / 100 - 0.3


def test_the_transformer_is_read_with_its_joints() -> None:
    kinds = Counter(type(node.kind) for node in load_model(MODELS / TRANSFORMER).network.nodes)
    # Of two blocks each the scores and the values, and a softmax between them.
    assert (kinds[MatrixProduct], kinds[Softmax]) == (4, 2)
    assert all(row.supported for row in inspect_operators(MODELS / TRANSFORMER))


@pytest.mark.parametrize("name", ["mnist_conv_small_nat_eran", "cifar10_wide_sgd"])
def test_weights_of_their_own_change_nothing(name: str) -> None:
    plain = load_model(MODELS / f"{name}.onnx")
    other = load_model(MODELS / f"{name}.onnx", weights=MODELS / f"{name}.safetensors")
    x = torch.rand(2, *plain.network.in_shape, dtype=torch.float64)
    assert torch.equal(plain.network.logits(x), other.network.logits(x))


def test_weights_under_other_names_are_refused() -> None:
    name = "mnist_784_64_10_gloro"
    with pytest.raises(CannotCertify) as refusal:
        load_model(MODELS / f"{name}.onnx", weights=MODELS / f"{name}.safetensors")
    assert "missing: 'onnx::MatMul_9' [784, 64]" in str(refusal.value)
    assert "not a parameter of the model: '1.weight' [64, 784]" in str(refusal.value)
