"""What a certificate claims of the outputs at every point of a ball, decided anew from numbers.

The label is among the ``top_k`` best of the outputs that compete, ties against it; or its softmax
probability is more than ``margin`` above every other one. The rule counts rivals, and computes
probabilities, where the run orders margins and computes with their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

# Of a sum of probabilities in numpy's longest type, and of each exponential.
_ROUNDED = 1e-12


@dataclass(frozen=True)
class Rule:
    """``classes``: those that compete, None for all; ``ended``: the file's outputs are
    probabilities, or their logarithms, already."""

    top_k: int = 1
    classes: tuple[int, ...] | None = None
    margin: float = 0.0
    ended: bool = False

    @classmethod
    def of(cls, certificate: Mapping[str, Any]) -> Rule:
        options = certificate["options"]
        classes = options.get("only_classes")
        return cls(
            options.get("top_k", 1), None if classes is None else tuple(classes),
            options.get("margin", 0.0), certificate["model"]["stripped"] is not None,
        )  # fmt: skip

    @property
    def plain(self) -> bool:
        """Whether the label has to be the best of all, and no more."""
        return self.top_k == 1 and self.classes is None and not self.margin

    def competing(self, outputs: Array) -> Array:
        """Outputs ``(n, K)``, −∞ where they do not compete."""
        if self.classes is None:
            return outputs
        kept = np.full_like(outputs, -np.inf)
        kept[:, self.classes] = outputs[:, self.classes]
        return kept

    def gaps(self, outputs: Array, labels: int | Array) -> Array:
        """The label's output minus each rival's, ascending, ``(n, rivals)``."""
        own = np.broadcast_to(np.asarray(labels), len(outputs))[:, None]
        others = self.competing(outputs).copy()
        np.put_along_axis(others, own, -np.inf, axis=1)
        gaps = np.sort(np.take_along_axis(outputs, own, axis=1) - others, axis=1)
        rivals = (outputs.shape[1] if self.classes is None else len(self.classes)) - 1
        return gaps[:, :rivals]

    def lead(self, outputs: Array, labels: int | Array) -> Array:
        """The label's output minus that of the rival that it has to stay above, ``(n,)``; NaN where
        an output is no finite number."""
        found = self.gaps(outputs, labels)[:, self.top_k - 1]
        return np.where(np.isfinite(outputs).all(axis=1), found, np.nan)

    def holds(self, outputs: Array, labels: int | Array) -> Array:
        """Whether the claim is true of the file's outputs ``(n, K)``: ``(n,)``. What is not finite
        makes nothing true."""
        with np.errstate(invalid="ignore"):
            gaps, lead = self.gaps(outputs, labels), self.lead(outputs, labels)
        if not self.margin:
            return np.asarray((gaps <= 0).sum(axis=1) < self.top_k) & (lead > 0)
        if not self.ended:
            return np.asarray(self._above(gaps) > 0)
        outputs = np.exp(outputs) if bool((outputs <= 0).all()) else outputs
        return np.asarray(self.lead(outputs, labels) > self.margin)

    def proven(self, least: Array) -> float:
        """What lower bounds ``(K,)`` of the margins, ∞ at the label, prove: positive where it is
        the claim."""
        gaps = np.sort(least if self.classes is None else least[list(self.classes)])
        if np.isnan(gaps).any():
            return -math.inf
        gaps = gaps[:-1]
        if self.margin:
            return float(self._above(gaps[None])[0]) - 1e3 * _ROUNDED
        return float(gaps[self.top_k - 1])

    def _above(self, gaps: Array) -> Array:
        """By how much more than ``margin`` the label's probability is above every other one."""
        small = np.exp(-gaps.astype(np.longdouble).clip(-1e4, 1e4))
        own = 1 / (1 + small.sum(axis=1))
        return np.asarray(own - own * small.max(axis=1) - self.margin - _ROUNDED)

    def loss(self, gaps: Tensor, target: Tensor | None) -> Tensor:
        """What an attack lowers, ``(n,)``, differentiably: of ``gaps`` ``(n, K)``, ∞ at the label
        and where nothing competes, those that are left to lose, with that to a ``target``
        ``(n, 1)`` among them where there is one."""
        if self.margin:
            return -torch.logsumexp(-gaps, 1)
        if self.top_k == 1:
            return gaps.amin(1) if target is None else gaps.gather(1, target).squeeze(1)
        if target is None:
            group = gaps.topk(self.top_k, 1, largest=False).values
        else:
            rest = gaps.scatter(1, target, math.inf).topk(self.top_k - 1, 1, largest=False).values
            group = torch.cat([gaps.gather(1, target), rest], 1)
        left = group.clamp(min=0).sum(1)
        return torch.where(left > 0, left, group.amax(1))

    def slack(self, gaps: Tensor) -> Tensor:
        """How near gaps ``(n, K)`` are to breaking the claim, ``(n,)``."""
        if self.margin:
            return -torch.logsumexp(-gaps, 1)
        return gaps.sort(1).values[:, self.top_k - 1]


PLAIN = Rule()
