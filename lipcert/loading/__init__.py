"""Pretrained networks from files: read, refused with reasons, and checked against onnxruntime."""

from lipcert.loading.cross_check import CrossCheck, cross_check
from lipcert.loading.deployed_file import TOLERANCE, DeployedFile, deployed_logits
from lipcert.loading.model import LoadedModel, inspect_operators, load_model, load_module
from lipcert.loading.operator_row import OperatorRow
from lipcert.loading.preprocessing import normalisation_found, with_preprocessing

__all__ = [
    "TOLERANCE", "CrossCheck", "DeployedFile", "LoadedModel", "OperatorRow", "cross_check",
    "deployed_logits", "inspect_operators", "load_model", "load_module",
    "normalisation_found", "with_preprocessing",
]  # fmt: skip
