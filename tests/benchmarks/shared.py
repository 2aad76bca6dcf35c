"""The pretrained models and data that benchmarks run on, from ``LIPCERT_SHARED_DIR``."""

import json
import os
from functools import cache
from pathlib import Path

import pytest

from lipcert.data import Dataset, load_dataset
from lipcert.loading import LoadedModel, load_model, with_preprocessing
from lipcert.network import Network

FOLDER = Path(os.environ.get("LIPCERT_SHARED_DIR", Path(__file__).parents[3] / "shared"))
MODELS = FOLDER / "models"

needs_models = pytest.mark.skipif(
    not (MODELS / "index.json").is_file(),
    reason="the pretrained models are not here: set LIPCERT_SHARED_DIR",
)


def index() -> dict[str, dict]:
    path = MODELS / "index.json"
    return {entry["id"]: entry for entry in json.loads(path.read_text())} if path.is_file() else {}


@cache
def dataset(name: str) -> Dataset:
    return load_dataset(name, data_dir=FOLDER / "data", offline=True)


def data_of(entry: dict) -> Dataset:
    return dataset("mnist" if entry["dataset"].startswith("mnist") else "cifar10")


def network_of(entry: dict) -> tuple[LoadedModel, Network]:
    """The model, and its network on pixels."""
    loaded = load_model(MODELS / entry["onnx"])
    network = with_preprocessing(
        loaded.network,
        image_shape=data_of(entry).images.shape[1:],
        mean=entry["mean"],
        std=entry["std"],
        layout="CWH" if "TRANSPOSED" in entry["layout"] else None,
    )
    return loaded, network
