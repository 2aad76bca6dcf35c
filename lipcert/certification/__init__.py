"""Verdicts and radii of samples."""

from lipcert.certification.certifier import Certifier, LayerNorm

__all__ = ["Certifier", "LayerNorm"]
