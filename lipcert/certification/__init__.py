"""Verdicts and radii of samples."""

from lipcert.certification.certifier import Certifier
from lipcert.certification.layer_norms import LayerNorm, with_eliminated

__all__ = ["Certifier", "LayerNorm", "with_eliminated"]
