"""Refined boxes: the verdict at an eps, with more work on the boxes than a radius is worth."""

from __future__ import annotations

from lipcert.certification.duals import Duals
from lipcert.certification.rungs.dual import DualAt


def refined_at(duals: Duals, eps: float) -> DualAt:
    """Puts the duals at ``eps`` on boxes that are refined as the effort says."""
    return DualAt(duals, eps, duals.analysis.pace.refine, name="refined")
