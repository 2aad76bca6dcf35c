"""Verdicts and radii of samples."""

from lipcert.certify.certifier import Certifier, LayerNorm
from lipcert.certify.options import Epsilon, Options

__all__ = ["Certifier", "Epsilon", "LayerNorm", "Options"]
