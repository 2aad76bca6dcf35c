"""What a run returns, and how it becomes a certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lipcert.certificate import Assurance, Certificate, Sample
from lipcert.errors import InternalError
from lipcert.options import Options
from lipcert.rounding import exceeds


@dataclass(frozen=True)
class RunResult:
    """The certificate of a run, and its samples in the order in which they were asked for: a tuple,
    or a sequence that reads them from disk where they are more than 100,000."""

    certificate: Certificate
    samples: Sequence[Sample]

    @property
    def summary(self) -> dict[str, Any]:
        return self.certificate.summary


def failed_sample(
    index: int,
    label: int,
    options: Options,
    message: str,
    prediction: int = -1,
    margin: float = math.nan,
    top: tuple[int, ...] = (),
) -> Sample:
    """The record of a sample whose computation failed: nothing is known of it but what the network
    makes of it, where that is given."""
    estimate = options.estimate
    return Sample(
        index=index,
        label=label,
        prediction=prediction,
        verdict="error",
        margin=margin,
        radius=None if estimate else 0.0,
        lipschitz=None,
        method=options.method,
        seconds=0.0,
        message=message,
        top=top,
    )


def assurance(options: Options, shared: float, samples: Sequence[Sample]) -> Assurance:
    """How sure the run is: ``shared`` is the failure probability of the norms all samples use.

    The probabilities add up (union bound), and a sum beyond the one asked for is an
    ``InternalError``. A run whose norms were all exact after all is deterministic.
    """
    if options.estimate:
        return Assurance("estimate", 0.0)
    spent = shared + sum(sample.failure_probability for sample in samples)
    allowed = 0.0 if options.deterministic else options.failure_probability
    if exceeds(spent, allowed):
        raise InternalError(
            f"the norms fail with probability {spent}, beyond {allowed}; please report this"
        )
    return Assurance("randomised" if spent else "deterministic", min(spent, allowed))


def check_estimate(options: Options, samples: Sequence[Sample]) -> None:
    """The gate between estimates and certificates. Raises ``InternalError`` if it is crossed."""
    for sample in samples:
        claims = sample.verdict == "certified" or sample.certified or sample.radius
        guesses = sample.verdict == "estimated" or sample.estimated or sample.radius_estimate
        if (options.estimate and (claims or sample.lipschitz is not None)) or (
            not options.estimate and guesses
        ):
            raise InternalError(
                f"sample {sample.index}: an estimate and a certificate are mixed; please report it"
            )
