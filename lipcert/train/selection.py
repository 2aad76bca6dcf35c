"""Which epoch's weights are exported: the user's own criterion on the validation images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from lipcert.errors import UsageError

_FORM = re.compile(r"(clean|certified)(?:>=(0?\.\d+|[01](?:\.0*)?))?")
# Of two epochs with as many of the wanted ones, the one with more of the others.
_TIE = 1e-3


@dataclass(frozen=True)
class Selection:
    """``of`` says which share counts; where ``least`` is given, that share must reach it and the
    other one counts.

    ``certified``: the most certified. ``clean``: the most accurate. ``clean>=0.75``: of the epochs
    with a clean accuracy of .75 the most certified; ``certified>=0.5``: of those with half of the
    images certified the most accurate. Where none reaches it, the one that comes nearest.
    """

    of: Literal["clean", "certified"] = "certified"
    least: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``UsageError`` for anything but the four forms."""
        found = _FORM.fullmatch(text.replace(" ", ""))
        least = float(found[2]) if found and found[2] else None
        if not found or not 0 <= (least or 0) <= 1:
            raise UsageError(
                f"--select {text!r}: give certified, clean, clean>=SHARE or certified>=SHARE, "
                "with a share from 0 to 1, such as clean>=0.75"
            )
        return cls("clean" if found[1] == "clean" else "certified", least)

    @property
    def text(self) -> str:
        return self.of if self.least is None else f"{self.of}>={self.least:g}"

    def score(self, clean: float, certified: float) -> float:
        """Larger is better; 0 or more."""
        own, other = (clean, certified) if self.of == "clean" else (certified, clean)
        if self.least is None:
            return own + _TIE * other
        # Any epoch that reaches it comes before all that do not.
        return 1 + other + _TIE * own if own >= self.least else own
