"""Upper bounds and boxes that carry the rounding of their own computation."""

from lipcert.numbers.boxes import (
    Box,
    around,
    halves,
    image,
    largest,
    meet,
    sum_box,
    widened,
)
from lipcert.numbers.outward import EXACT, OUT32, OUT64, Outward, outward_of

__all__ = [
    "EXACT",
    "OUT32",
    "OUT64",
    "Box",
    "Outward",
    "around",
    "halves",
    "image",
    "largest",
    "meet",
    "outward_of",
    "sum_box",
    "widened",
]
