"""What is known of a batch of samples so far, and the samples that it makes in the end."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from lipcert.certificate import Sample, Verdict
from lipcert.certification.attack import Attack
from lipcert.certification.ledger import Ledger
from lipcert.errors import InternalError
from lipcert.options import Options


class Findings:
    """One row a sample, filled in rung by rung.

    ``radius``: the largest that is certified, −1 where there is none; ``rung``: the number, in
    ``rungs``, of the one that found it; ``deployed``: the deployed error that it was charged, or
    that of the ball of the largest eps.
    ``constant``: of Lipschitz, in the ball of the largest eps. ``attacked``: the distance of the
    nearest misclassified point, in ``points``. ``fixed``: how many neurons of each layer cannot
    vary. ``spent``: failure probability. ``late``: time was up before every rung was tried.
    ``contradicted``: by row, what the deployed file says against the certificate.
    """

    def __init__(
        self, x: Tensor, logits: Tensor, labels: Tensor, options: Options, rungs: tuple[str, ...]
    ) -> None:
        self.options, self.rungs, self.label = options, rungs, labels
        self.ledger = Ledger(len(labels))
        self.prediction = logits.argmax(1)
        others = logits.scatter(1, self.prediction[:, None], -math.inf).amax(1)
        margin = logits.gather(1, self.prediction[:, None]).squeeze(1) - others
        self.margin = torch.where(torch.isfinite(logits).all(1), margin, math.nan)
        self.correct = torch.isfinite(self.margin) & (self.prediction == labels)
        self.rung = torch.zeros_like(labels)
        self.radius, self.spent = torch.full_like(margin, -1), torch.zeros_like(margin)
        self.constant, self.attacked = (torch.full_like(margin, math.inf) for _ in range(2))
        self.deployed = torch.full_like(margin, math.nan)
        self.fixed: Tensor | None = None
        self.points = x.clone()
        self.was_attacked = False
        limit = options.time_per_sample
        self.ends = math.inf if limit is None else time.monotonic() + limit * len(labels)
        self.late = torch.zeros_like(self.correct)
        self.contradicted: dict[int, str] = {}
        self.ledger.passed("prediction", torch.arange(len(labels)), ~self.correct)

    def improve(self, rows: Tensor, radius: Tensor, rung: int, deployed: Tensor) -> None:
        """Where ``radius`` is larger than what is known, keep it, with its rung and error."""
        better = radius > self.radius[rows]
        rung_ = torch.full_like(self.rung[rows], rung)
        self.radius[rows] = torch.where(better, radius, self.radius[rows])
        self.rung[rows] = torch.where(better, rung_, self.rung[rows])
        known = self.deployed[rows]
        self.deployed[rows] = torch.where(better | known.isnan(), deployed, known)

    def break_by(self, rows: Tensor, attack: Attack) -> None:
        """What an attack has found."""
        self.was_attacked = True
        self.attacked[rows], self.points[rows] = attack.radius, attack.points.to(self.points)

    def passed(self, rung: str, rows: Tensor) -> None:
        """These samples have been through that rung since the last call."""
        eps = self.options.largest
        decided = (self.radius >= eps.rounded_up) | (self.attacked <= eps.rounded_down)
        self.ledger.passed(rung, rows, decided[rows])

    def contradict(self, rows: Tensor, found: dict[int, str]) -> None:
        """These samples were certified and run through the deployed file; what was ``found``, by
        place in ``rows``, takes the certificate away: nothing is known of that sample."""
        against = torch.zeros_like(rows, dtype=torch.bool)
        for place, message in found.items():
            row = int(rows[place])
            self.contradicted[row] = message
            self.radius[row], self.constant[row], against[place] = -1.0, math.inf, True
        self.ledger.passed("file", rows, against, again=True)

    def seconds_left(self, rows: Tensor) -> float:
        """Until no other rung may begin; where that is over, these samples are late."""
        left = self.ends - time.monotonic()
        self.late[rows] = self.late[rows] | (left <= 0)
        return left

    def check(self, streams: Tensor) -> None:
        """No attack may have come inside a certificate. Estimates bound nothing: they may be."""
        broken = (self.radius >= self.attacked) & self.correct
        if not self.options.estimate and bool(broken.any()):
            row = int(broken.nonzero()[0])
            raise InternalError(
                f"sample {int(streams[row])}: an attack found a misclassified point at "
                f"{float(self.attacked[row])}, inside the certified radius "
                f"{float(self.radius[row])}; please report this"
            )

    def sample(self, row: int, index: int) -> Sample:
        """The record of one sample, whose number is ``index``."""
        estimate = self.options.estimate
        correct = bool(self.correct[row])
        radius = max(0.0, float(self.radius[row]))
        constant = float(self.constant[row])
        known = constant if math.isfinite(constant) else None
        reached = self._reached(row)
        verdict, message = self._verdict(row, reached)
        seconds = self.ledger.seconds(row)
        counted = self.fixed is not None and verdict != "error"
        attacked = self.was_attacked and verdict != "error"
        return Sample(
            index=index,
            label=int(self.label[row]),
            prediction=int(self.prediction[row]) if math.isfinite(float(self.margin[row])) else -1,
            verdict=verdict,
            margin=float(self.margin[row]),
            radius=None if estimate else radius,
            lipschitz=None if estimate else known,
            method=self.rungs[int(self.rung[row])],
            seconds=sum(seconds.values()),
            rungs=seconds,
            decided_by=self.ledger.decided(row),
            certified=() if estimate else reached,
            failure_probability=float(self.spent[row]),
            deployed_error=float(self.deployed[row]) if correct and not estimate else None,
            radius_estimate=radius if estimate else None,
            lipschitz_estimate=known if estimate else None,
            estimated=reached if estimate else (),
            attack_radius=float(self.attacked[row]) if attacked else None,
            eliminated=tuple(self.fixed[row].tolist()) if counted else (),  # type: ignore[index]
            message=message,
        )

    def _reached(self, row: int) -> tuple[str, ...]:
        radius = float(self.radius[row])
        return tuple(eps.text for eps in self.options.eps if radius >= eps.rounded_up)

    def _verdict(self, row: int, reached: tuple[str, ...]) -> tuple[Verdict, str | None]:
        if row in self.contradicted:
            return "error", self.contradicted[row]
        largest, deployed = self.options.largest, float(self.deployed[row])
        if not math.isfinite(float(self.margin[row])):
            return "error", "the logits are not finite numbers"
        if not bool(self.correct[row]):
            return "misclassified", None
        if largest.text in reached:
            return ("estimated" if self.options.estimate else "certified"), None
        if float(self.attacked[row]) <= largest.rounded_down:
            return "falsified", None
        if bool(self.late[row]):
            return "timeout", f"open after --time-per-sample {self.options.time_per_sample:g}"
        if not (reached or math.isfinite(deployed)):
            return "unknown", f"a value could overflow {self.options.deployed} in the ball"
        if not reached and deployed >= float(self.margin[row]):
            return "unknown", f"rounding in {self.options.deployed} could alone exceed the margin"
        return "unknown", None
