"""Heads: what is claimed of the outputs, as a rule on the margins of pairs.

Every bound, the attack and the file's own run speak of margins ``f_y − f_j`` between the label and
each rival, the other outputs that compete with it. A head says what they mean together: ``least``
makes one number of them, positive exactly where the claim holds. It never falls where a margin
rises, so that lower bounds of margins over a ball give a lower bound of it.

| head | the claim | ``least`` |
|---|---|---|
| plain | the label's output is the greatest | the least margin |
| ``top_k`` = K | fewer than K rivals reach it | the K-th least margin |
| ``classes`` | of these outputs alone | the same over fewer margins |
| ``margin`` = P | its probability is more than P above every other | see ``_above`` |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.errors import UsageError
from lipcert.numbers import outward_of
from lipcert.options import Options
from lipcert.rounding import Arithmetic

# A rival that is so much below the label, in logits, that its probability no longer counts.
_FAR = 40.0


@dataclass(frozen=True)
class Head:
    """``top_k``: the label has to be among so many best; ``classes``: the outputs that compete,
    None for all; ``margin``: how far its softmax probability has to be above every other one."""

    top_k: int = 1
    classes: tuple[int, ...] | None = None
    margin: float = 0.0

    @classmethod
    def of(cls, options: Options) -> Head:
        return cls(options.top_k, options.only_classes, options.margin)

    def check(self, outputs: int) -> None:
        """Raises ``UsageError`` where a network with so many ``outputs`` has no such claim."""
        if self.classes is not None and max(self.classes) >= outputs:
            raise UsageError(
                f"--only-classes: names class {max(self.classes)}, the network has the classes 0 "
                f"to {outputs - 1}"
            )
        if self.top_k > self.rivals(outputs):
            raise UsageError(
                f"--top-k {self.top_k}: of {self.rivals(outputs) + 1} classes every label is among "
                f"the {self.top_k} best, so there is nothing to certify; choose fewer"
            )

    def charged(self, outputs: int, arithmetic: Arithmetic) -> Head:
        """The head whose claim about a softmax in real numbers gives this one's about one that the
        file computes itself: of each probability, relative to 1, the exponentials round by
        ``u (9 + 1/e)`` and their sum by ``u (8 + log K + K)``."""
        if not self.margin:
            return self
        return replace(self, margin=self.margin + 2 * (outputs + 128) * arithmetic.unit)

    def rivals(self, outputs: int) -> int:
        """How many outputs compete with the label."""
        return (outputs if self.classes is None else len(self.classes)) - 1

    @property
    def inner(self) -> bool:
        """Whether the claim is about outputs below the greatest of all."""
        return self.top_k > 1 or self.classes is not None

    @property
    def pairwise(self) -> bool:
        """Whether each margin counts by its sign alone."""
        return not self.margin

    def among(self, values: Tensor, labels: Tensor, fill: float) -> Tensor:
        """``values`` ``(n, K)`` with ``fill`` in place of those at the labels ``(n,)`` and at
        outputs that do not compete."""
        values = values.scatter(1, labels[:, None], fill)
        return values if self.classes is None else values.masked_fill(self._others(values), fill)

    def competing(self, logits: Tensor) -> Tensor:
        """Logits ``(n, K)``, −∞ where they do not compete."""
        if self.classes is None:
            return logits
        return logits.masked_fill(self._others(logits), -math.inf)

    def margins(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``f_y − f_j``, ``(n, K)``; infinite at the labels and where outputs do not compete."""
        return self.among(logits.gather(1, labels[:, None]) - logits, labels, math.inf)

    def least(self, margins: Tensor, labels: Tensor) -> Tensor:
        """What the margins ``(n, K)`` mean together, ``(n,)``: positive where the claim holds; not
        so for a tie, nor for any NaN."""
        margins = self.among(margins, labels, math.inf)
        return self._above(margins) if self.margin else self.deciding(margins)

    def deciding(self, margins: Tensor) -> Tensor:
        """The margin that decides, the ``top_k``-th least, ``(n,)``, of those ``among`` others
        infinite ones. A NaN is less than any number."""
        if self.top_k == 1:
            return margins.amin(1)
        return margins.nan_to_num(-math.inf, math.inf, -math.inf).kthvalue(self.top_k, 1).values

    def nearest(self, margins: Tensor, count: int) -> Tensor:
        """The places ``(n, c)`` of the margins that decide, and of so many in all that come next,
        as far as there are any: nearest first."""
        wanted = min(count + self.top_k - 1, self.rivals(margins.shape[1]))
        return margins.topk(wanted, 1, largest=False).indices

    def is_open(self, slack: Tensor) -> Tensor:
        """Which margins, by how far they are proven above what they need, a better bound of could
        help: of the same shape."""
        return ~(slack > (0.0 if self.pairwise else _FAR))

    def top(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The ``top_k`` best classes, ``(n, top_k)``, best first; in a tie the label comes last."""
        order = self.competing(logits).scatter(1, labels[:, None], -math.inf)
        own = logits.gather(1, labels[:, None])
        # The label's place is behind all that are not below it.
        place = (~(order < own)).sum(1, keepdim=True)
        best = order.argsort(dim=1, descending=True, stable=True)
        places = torch.arange(self.top_k, device=logits.device).expand(len(logits), -1)
        shifted = best.gather(1, places - (places > place).long())
        return torch.where(places == place, labels[:, None], shifted)

    def _above(self, margins: Tensor) -> Tensor:
        """How far the least margin ``m`` is above the one that it needs, ``(n,)``.

        With all margins ``m_j`` between ``y`` and others, ``p_y − max p_j = (1 − e^−m) / (1 +
        Σ e^−m_j)``, which is above ``P`` exactly where ``e^−m + P Σ e^−m_j < 1 − P``, so where
        ``m > log(1 + P Σ e^(m − m_j)) − log(1 − P)``. That is rounded up: an exponential errs by
        ``u (4 + |m − m_j|)`` of itself, hence by ``5u`` of the 1 that the least margin adds to the
        sum; ``n`` such and the sum's roundings, the logarithms and the rest are fewer than
        ``6 n + 64``, and neither logarithm makes a relative error larger.
        """
        least = margins.amin(1)
        if not self.margin < 1:
            return torch.full_like(least, -math.inf)
        others = (least[:, None] - margins).exp().sum(1)
        needed = torch.log1p(self.margin * others) - math.log1p(-self.margin)
        eps = torch.finfo(needed.dtype).eps
        needed = outward_of(needed.dtype).up(needed, 6 * margins.shape[1] + 64)
        return least - needed - 4 * eps * (1 + least.abs() + needed)

    def _others(self, like: Tensor) -> Tensor:
        """Which outputs do not compete: ``(K,)``."""
        assert self.classes is not None
        others = torch.ones(like.shape[1], dtype=torch.bool, device=like.device)
        others[list(self.classes)] = False
        return others


PLAIN = Head()
