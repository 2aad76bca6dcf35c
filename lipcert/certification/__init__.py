"""Verdicts and radii of samples."""

from lipcert.certification.certifier import Certifier
from lipcert.certification.layer_norms import LayerNorm, with_eliminated
from lipcert.certification.tube import joints_of

__all__ = ["Certifier", "LayerNorm", "joints_of", "with_eliminated"]
