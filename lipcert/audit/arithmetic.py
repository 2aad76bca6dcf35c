"""What a run of the file rounds: in the format that it is deployed in, and in the file's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Unit roundoff, smallest normal and half the largest number of what a network may be deployed in.
FORMATS = {
    "float64": (2.0**-53, 2.0**-1022, 2.0**1022),
    "float32": (2.0**-24, 2.0**-126, 2.0**126),
    "bfloat16": (2.0**-8, 2.0**-126, 2.0**126),
    "float16": (2.0**-11, 2.0**-14, 2.0**14),
}
_SHORT = frozenset({"bfloat16", "float16"})
# How many units the logits before a Softmax have to be apart for its results not to tie: what
# exponentials and quotients round is a few units, all below this many for 2^40 classes.
_TIE = 2.0**10


@dataclass(frozen=True)
class Arithmetic:
    """``unit`` of the format, ``sums`` of the one that sums of products are kept in; what one
    operation can lose to underflow; and half the largest number: all 0 but the last, which is
    infinite, for real arithmetic. ``tie``: how far the logits before a Softmax have to be apart."""

    unit: float
    sums: float
    tiny: float
    most: float
    tie: float

    @classmethod
    def of(
        cls, deployed: str, inside: Iterable[str] = (), leaves: Iterable[str] = ()
    ) -> Arithmetic:
        """Of a file whose values are of the types ``inside`` up to its logits, and of the types
        ``leaves`` from there to its output.

        A file of float32 or of float64 alone runs in the format that it is deployed in, or in real
        numbers. What another one computes in a type of its own it rounds in that type however it is
        deployed, so that all of it is charged in the coarsest of all these formats.
        """
        own = set(inside)
        charged = {deployed} - {"real"}
        if len(own) > 1 or own & _SHORT:
            charged |= own
        ties = [FORMATS[name][0] for name in charged.union(own, leaves)]
        tie = _TIE * max(ties, default=FORMATS["float64"][0])
        if not charged:
            return cls(0.0, 0.0, 0.0, math.inf, tie)
        units, tinies, mosts = zip(*(FORMATS[name] for name in charged), strict=True)
        unit = max(units)
        return cls(unit, min(unit, FORMATS["float32"][0]), max(tinies), min(mosts), tie)
