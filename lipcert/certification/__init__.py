"""Verdicts and radii of samples."""

from lipcert.certification.certifier import Certifier
from lipcert.certification.findings import Findings, Step
from lipcert.certification.layer_norms import LayerNorm, with_eliminated
from lipcert.certification.published import Published
from lipcert.certification.rungs import Rung, is_deep
from lipcert.certification.samples import Samples

__all__ = [
    "Certifier", "Findings", "LayerNorm", "Published", "Rung", "Samples", "Step",
    "is_deep", "with_eliminated",
]  # fmt: skip
