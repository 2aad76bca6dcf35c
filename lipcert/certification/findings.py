"""What is known of a batch of samples so far, and the samples that it makes in the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lipcert.certificate import Sample, Verdict
from lipcert.certification.attack import Attack
from lipcert.certification.heads import Head
from lipcert.certification.ledger import Ledger
from lipcert.certification.margins import Open
from lipcert.certification.warm_start import WarmStart
from lipcert.errors import InternalError
from lipcert.options import Options


@dataclass(frozen=True, eq=False)
class Step:
    """What one rung has found of ``rows`` ``(n,)`` of a batch, the samples that went through it.

    ``radius``: certified, −1 where it is not; ``deployed``: the deployed error that was charged.
    ``constant``: of Lipschitz, in the ball of the largest eps, and ``fixed`` how many neurons of
    each layer cannot vary there. ``attack``: the nearest misclassified points. ``late``: rows of
    the batch, for which the rung had no time left. ``contradicted``: by row of the batch, what the
    deployed file says against the certificate. ``(n,)`` each where not said otherwise, and None
    where the rung does not ask.

    For later rungs: ``guess``, about the largest radius that duals prove; ``hopeless``, for which
    no dual is tried any more; ``start``, where searches for multipliers begin; ``open``, the
    margins that are left to split.
    """

    rung: str
    rows: Tensor
    radius: Tensor | None = None
    deployed: Tensor | None = None
    constant: Tensor | None = None
    fixed: Tensor | None = None
    attack: Attack | None = None
    late: Tensor | None = None
    contradicted: dict[int, str] | None = None
    guess: Tensor | None = None
    hopeless: Tensor | None = None
    start: WarmStart | None = None
    open: Open | None = None


@dataclass(frozen=True, eq=False)
class Findings:
    """One row a sample; every rung leaves new ones, with its step.

    ``radius``: the largest that is certified, −1 where there is none, found by the rung of the
    place ``rung`` in ``rungs``; ``deployed``: the deployed error that it was charged, or that of
    the ball of the largest eps. ``constant``: of Lipschitz, in the ball of the largest eps.
    ``attacked``: the distance of the nearest misclassified point, in ``points``. ``fixed``: how
    many neurons of each layer cannot vary, −1 where nobody asked. ``spent``: failure probability.
    ``ends``: when no other rung may begin, by the clock; ``late``: it was over before every rung
    was tried. ``contradicted``: by row, what the deployed file says against the certificate.
    ``right``: the answer is; ``correct``: and what is claimed holds at the sample itself. ``top``:
    the best classes ``(B, k)``, where more than one counts. The others as in ``Step``.
    """

    options: Options
    label: Tensor
    prediction: Tensor
    margin: Tensor
    right: Tensor
    correct: Tensor
    radius: Tensor
    rung: Tensor
    deployed: Tensor
    constant: Tensor
    attacked: Tensor
    points: Tensor
    spent: Tensor
    late: Tensor
    guess: Tensor
    hopeless: Tensor
    ledger: Ledger
    ends: float
    rungs: tuple[str, ...] = ()
    was_attacked: bool = False
    fixed: Tensor | None = None
    top: Tensor | None = None
    contradicted: dict[int, str] = field(default_factory=dict)
    start: WarmStart | None = None
    open: Open | None = None

    @classmethod
    def of(cls, x: Tensor, logits: Tensor, labels: Tensor, options: Options) -> Findings:
        """Begins with what the predictions say of samples ``x`` ``(B, …)``."""
        head = Head.of(options)
        prediction, margin, right, top = answers(logits, labels, head)
        correct = right & (head.least(head.margins(logits, labels), labels) > 0)
        if head.pairwise:
            correct = right
        limit, everyone = options.time_per_sample, torch.arange(len(labels), device=labels.device)
        infinite, none = torch.full_like(margin, math.inf), torch.full_like(margin, -1)
        never = torch.zeros_like(correct)
        return cls(
            options=options,
            label=labels,
            prediction=prediction,
            margin=margin,
            right=right,
            correct=correct,
            radius=none,
            rung=torch.zeros_like(labels),
            deployed=torch.full_like(margin, math.nan),
            constant=infinite,
            attacked=torch.where(right & ~correct, 0.0, infinite),
            points=x,
            spent=torch.zeros_like(margin),
            late=never,
            guess=none,
            hopeless=never,
            top=top,
            was_attacked=bool((right & ~correct).any()),
            ledger=Ledger.begun(len(labels)).passed("prediction", everyone, ~correct),
            ends=math.inf if limit is None else time.monotonic() + limit * len(labels),
        )

    def after(self, step: Step) -> Findings:
        """Says what is known once a rung has made its step."""
        rows, found = step.rows, self
        if step.radius is not None:
            found = found._with_radii(step)
        if step.attack is not None:
            found = replace(
                found,
                was_attacked=True,
                attacked=found.attacked.index_copy(0, rows, step.attack.radius),
                points=found.points.index_copy(0, rows, step.attack.points.to(found.points)),
            )
        if step.constant is not None:
            constant = found.constant.index_copy(0, rows, step.constant)
            found = replace(found, constant=constant)
        if step.fixed is not None:
            unknown = torch.full_like(step.fixed[:1], -1).repeat(len(self.label), 1)
            found = replace(found, fixed=unknown.index_copy(0, rows, step.fixed))
        if step.guess is not None:
            found = replace(found, guess=found.guess.index_copy(0, rows, step.guess))
        if step.hopeless is not None:
            found = replace(found, hopeless=found.hopeless.index_copy(0, rows, step.hopeless))
        if step.start is not None:
            found = replace(found, start=step.start.spread(rows, len(self.label)))
        if step.late is not None:
            found = replace(found, late=found.late.index_fill(0, step.late, True))
        if step.contradicted is not None:
            return found._contradicted(rows, step.contradicted)
        eps = self.options.largest
        decided = (found.radius >= eps.rounded_up) | (found.attacked <= eps.rounded_down)
        ledger = found.ledger
        if len(rows):
            ledger = ledger.passed(step.rung, rows, decided[rows])
        return replace(found, open=step.open, ledger=ledger)

    def _with_radii(self, step: Step) -> Findings:
        """Keeps the radii that are larger than what is known, with their rung and error."""
        assert step.radius is not None
        assert step.deployed is not None
        rows = step.rows
        rungs = self.rungs if step.rung in self.rungs else (*self.rungs, step.rung)
        better = step.radius > self.radius[rows]
        place = torch.full_like(self.rung[rows], rungs.index(step.rung))

        def kept(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, torch.where(better, new, old[rows]))

        # What stood against a certificate, where nothing else is known of it.
        known = self.deployed[rows]
        told = torch.where(better | known.isnan(), step.deployed, known)

        return replace(
            self,
            rungs=rungs,
            radius=kept(self.radius, step.radius),
            rung=kept(self.rung, place),
            deployed=self.deployed.index_copy(0, rows, told),
        )

    def _contradicted(self, rows: Tensor, found: dict[int, str]) -> Findings:
        """Forgets what is known of samples that the deployed file contradicts."""
        against = torch.tensor(
            [row in found for row in range(len(self.correct))], device=self.correct.device
        )
        return replace(
            self,
            contradicted=self.contradicted | found,
            radius=torch.where(against, -1.0, self.radius),
            constant=torch.where(against, math.inf, self.constant),
            ledger=self.ledger.passed("file", rows, against[rows], again=True),
        )

    @property
    def seconds_left(self) -> float:
        """The seconds until no other rung may begin."""
        return self.ends - time.monotonic()

    def check(self, streams: Tensor) -> None:
        """Raises ``InternalError`` where an attack lies inside a certificate. Estimates bound
        nothing, so theirs may."""
        broken = (self.radius >= self.attacked) & self.correct
        if not self.options.estimate and bool(broken.any()):
            row = int(broken.nonzero()[0])
            raise InternalError(
                f"sample {int(streams[row])}: an attack found a misclassified point at "
                f"{float(self.attacked[row])}, inside the certified radius "
                f"{float(self.radius[row])}; please report this"
            )

    def samples(self, indices: Sequence[int]) -> list[Sample]:
        """Makes the records of all samples, whose numbers are ``indices``."""
        # Asked for one by one, every number would wait for the device.
        kept = ("start", "open", "points", "guess", "hopeless")
        numbers = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.dim() == 1 and name not in kept
        }
        # Whole numbers of a batch are far below 2^53.
        columns = torch.stack([value.double() for value in numbers.values()]).cpu().unbind()
        told: dict[str, Any] = {
            name: column.to(value.dtype)
            for (name, value), column in zip(numbers.items(), columns, strict=True)
        }
        fixed = None if self.fixed is None else self.fixed.cpu()
        here = replace(self, **told, fixed=fixed)
        return [here._sample(row, index) for row, index in enumerate(indices)]

    def _sample(self, row: int, index: int) -> Sample:
        estimate = self.options.estimate
        correct, finite = bool(self.correct[row]), math.isfinite(float(self.margin[row]))
        radius = max(0.0, float(self.radius[row]))
        constant = float(self.constant[row])
        known = constant if math.isfinite(constant) else None
        reached = self._reached(row)
        verdict, message = self._verdict(row, reached)
        seconds = self.ledger.seconds(row)
        counted = self.fixed is not None and verdict != "error" and int(self.fixed[row].min()) >= 0
        attacked = self.was_attacked and verdict != "error"
        return Sample(
            index=index,
            label=int(self.label[row]),
            prediction=int(self.prediction[row]) if finite else -1,
            verdict=verdict,
            margin=float(self.margin[row]),
            radius=None if estimate else radius,
            lipschitz=None if estimate else known,
            method=self._method(row),
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
            top=() if self.top is None or not finite else tuple(self.top[row].tolist()),
        )

    def _method(self, row: int) -> str:
        """The rung that found the radius; where there is none, the published bound of the run, or
        the first rung of a run that has none."""
        if float(self.radius[row]) >= 0:
            return self.rungs[int(self.rung[row])]
        published = "local" if self.options.method == "auto" else self.options.method
        return published if published in self.rungs or not self.rungs else self.rungs[0]

    def _reached(self, row: int) -> tuple[str, ...]:
        radius = float(self.radius[row])
        return tuple(eps.text for eps in self.options.eps if radius >= eps.rounded_up)

    def _verdict(self, row: int, reached: tuple[str, ...]) -> tuple[Verdict, str | None]:
        if row in self.contradicted:
            return "error", self.contradicted[row]
        largest, deployed = self.options.largest, float(self.deployed[row])
        if not math.isfinite(float(self.margin[row])):
            return "error", "the logits are not finite numbers"
        if not bool(self.right[row]):
            return "misclassified", None
        if largest.text in reached:
            return ("estimated" if self.options.estimate else "certified"), None
        if float(self.attacked[row]) <= largest.rounded_down:
            return "falsified", None
        if bool(self.late[row]):
            return "timeout", f"open after --time-per-sample {self.options.time_per_sample:g}"
        told = self.options.radii or not math.isnan(deployed)
        if told and not (reached or math.isfinite(deployed)):
            return "unknown", f"a value could overflow {self.options.deployed} in the ball"
        if not reached and deployed >= float(self.margin[row]):
            return "unknown", f"rounding in {self.options.deployed} could alone exceed the margin"
        return "unknown", None


def answers(
    logits: Tensor, labels: Tensor, head: Head
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What logits ``(B, K)`` answer: the predicted class, the margin, NaN where a logit is no
    finite number, and whether the answer is right, ``(B,)`` each; then the best classes where more
    than one counts, ``(B, k)``.

    The margin is that of the prediction to the next class. Where several best ones count, it is
    that of the label to the class that it must stay above, and positive where the answer is right.
    """
    finite = torch.isfinite(logits).all(1)
    competing = head.competing(logits)
    if head.top_k == 1:
        prediction = competing.argmax(1)
        others = competing.scatter(1, prediction[:, None], -math.inf).amax(1)
        margin = logits.gather(1, prediction[:, None]).squeeze(1) - others
        margin = torch.where(finite, margin, math.nan)
        return prediction, margin, torch.isfinite(margin) & (prediction == labels), None
    margin = torch.where(finite, head.deciding(head.margins(logits, labels)), math.nan)
    top = head.top(logits, labels)
    return top[:, 0], margin, margin > 0, top
