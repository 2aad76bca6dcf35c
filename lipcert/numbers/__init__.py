"""Upper bounds and boxes that carry the rounding of their own computation."""

from lipcert.numbers.boxes import (
    Box,
    around,
    halves,
    image,
    largest,
    meet,
    moved,
    sum_box,
    widened,
)
from lipcert.numbers.outward import EXACT, OUT32, OUT64, Outward, for_samples, outward_of
from lipcert.numbers.summation import SumOrder, SumTree

__all__ = [
    "EXACT",
    "OUT32",
    "OUT64",
    "Box",
    "Outward",
    "SumOrder",
    "SumTree",
    "around",
    "for_samples",
    "halves",
    "image",
    "largest",
    "meet",
    "moved",
    "outward_of",
    "sum_box",
    "widened",
]
