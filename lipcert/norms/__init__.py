"""Operator norms with an assurance: upper bounds, or estimates that say so."""

from lipcert.norms.bounds import (
    Norm,
    SegmentNorms,
    randomised_norm,
    schur_bound,
)
from lipcert.norms.budget import Account, Allowance, Budget, NormCoins, Preparation, Projections
from lipcert.norms.krylov import chebyshev_bound, lanczos, power_iteration, stretched
from lipcert.norms.matrix import largest_eigenvalue, spectral_norm
from lipcert.norms.spectrum import convolution_norm
from lipcert.norms.structure import (
    absolute_norm,
    largest_sums,
    operator_norm,
    ready_norm,
    row_norms,
    structural_norm,
)
from lipcert.norms.weighted import GramMap, WeightedMap, times
from lipcert.norms.written import rough_norm, written_norm

__all__ = [
    "Account", "Allowance", "Budget", "GramMap", "Norm", "NormCoins", "Preparation", "Projections",
    "SegmentNorms", "WeightedMap", "absolute_norm", "chebyshev_bound", "convolution_norm",
    "lanczos", "largest_eigenvalue", "largest_sums", "operator_norm", "power_iteration",
    "randomised_norm", "ready_norm", "rough_norm", "row_norms", "schur_bound", "spectral_norm",
    "stretched", "structural_norm", "times", "written_norm",
]  # fmt: skip
