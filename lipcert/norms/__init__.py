"""Operator norms with an assurance: upper bounds, or estimates that say so."""

from lipcert.norms.bounds import (
    Norm,
    SegmentNorms,
    operator_norm,
    randomised_norm,
    schur_bound,
    structural_norm,
)
from lipcert.norms.coins import unit_vectors
from lipcert.norms.krylov import chebyshev_bound, lanczos, power_iteration
from lipcert.norms.matrix import largest_eigenvalue, spectral_norm
from lipcert.norms.spectrum import convolution_norm
from lipcert.norms.weighted import GramMap, WeightedMap, times

__all__ = [
    "GramMap", "Norm", "SegmentNorms", "WeightedMap", "chebyshev_bound", "convolution_norm",
    "lanczos", "largest_eigenvalue", "operator_norm", "power_iteration", "randomised_norm",
    "schur_bound", "spectral_norm", "structural_norm", "times", "unit_vectors",
]  # fmt: skip
