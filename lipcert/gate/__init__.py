"""Release gates: exact thresholds on a certificate, with one predicate for message and outcome."""

from lipcert.gate.evaluate import by_eps, evaluate
from lipcert.gate.outcome import Outcome, Status, worst
from lipcert.gate.pairing import Comparison, compare, require_same_samples
from lipcert.gate.thresholds import Thresholds

__all__ = [
    "Comparison", "Outcome", "Status", "Thresholds", "by_eps", "compare", "evaluate",
    "require_same_samples", "worst",
]  # fmt: skip
