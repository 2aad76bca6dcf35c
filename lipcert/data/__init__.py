"""Datasets by name, by file or from the user's own code, and the choice of samples in them."""

from lipcert.data.choose import choose, indices_digest
from lipcert.data.classes import Labelling, mapped, only, relabelled
from lipcert.data.dataset import Dataset
from lipcert.data.layouts import Expected
from lipcert.data.load import load_dataset
from lipcert.data.named import Availability, available

__all__ = [
    "Availability",
    "Dataset",
    "Expected",
    "Labelling",
    "available",
    "choose",
    "indices_digest",
    "load_dataset",
    "mapped",
    "only",
    "relabelled",
]
