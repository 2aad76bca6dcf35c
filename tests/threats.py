"""What a fuzzed certificate claims, and attacks that stay within the claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from assault import Outcome, assault
from fuzz import Evaluate, deployed, exported, runtime
from laws import pick
from torch import Generator, Tensor

from lipcert.bounds.refined import Refinement
from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.certification.pace import Pace
from lipcert.errors import CannotCertify
from lipcert.network import Network
from lipcert.options import Effort, Epsilon, Options

METHODS = ("global fast", "local fast", "auto fast", "auto standard", "auto max")
# Real numbers are evaluated in float64, whose own rounding breaks nothing.
_ROUNDING = 1e-10
# Attacks at so many times a certified radius leave room for later rungs, and hope.
_APART, _NEAR = 1.02, 2.0


def seeing_any_window(paces: Mapping[Effort, Pace]) -> dict[Effort, Pace]:
    """The same efforts, which see neurons through windows in small networks too."""

    def seeing(given: Refinement | None) -> Refinement | None:
        return given and replace(given, receptive=10.0)

    return {
        effort: replace(pace, boxes=seeing(pace.boxes), refine=seeing(pace.refine))
        for effort, pace in paces.items()
    }


@dataclass(frozen=True)
class Threat:
    """The deployed format, whether only images count, and the type of the analysis."""

    deployed: str = "float32"
    pixel_domain: bool = False
    dtype: str = "float64"

    @classmethod
    def drawn(cls, generator: Generator) -> Threat:
        """Mostly the defaults, on which the roundings of the deployed network bear most."""
        return cls(
            pick(["float32"] * 6 + ["float64", "real"], generator),
            pick([False, False, False, True], generator),
            pick(["float64", "float32"], generator),
        )

    def __str__(self) -> str:
        images = ", pixel domain" if self.pixel_domain else ""
        return f"deployed {self.deployed}{images}, analysed in {self.dtype}"

    @property
    def evaluated(self) -> torch.dtype:
        return torch.float32 if self.deployed == "float32" else torch.float64

    def evaluations(self, network: Network, generator: Generator) -> dict[str, Evaluate]:
        """All ways to evaluate a small network."""
        ways = deployed(network, generator, self.evaluated)
        if self.deployed == "float32":
            ways["onnxruntime"] = runtime(exported(network))
        return ways

    def certified(
        self, network: Network, x: Tensor, labels: Tensor, method: str, eps: Sequence[str]
    ) -> list[Sample] | None:
        """None where a weight is more than the deployed format holds: nothing is certified then."""
        kind, effort = method.split()
        options = Options(
            tuple(map(Epsilon.parse, eps)), method=kind, effort=effort, dtype=self.dtype,  # type: ignore[arg-type]
            deployed=self.deployed, pixel_domain=self.pixel_domain,  # type: ignore[arg-type]
        )  # fmt: skip
        try:
            certifier = Certifier(network, options, samples=len(x))
        except CannotCertify as refusal:
            if "overflows" not in str(refusal):
                raise
            return None
        return certifier(x, labels, range(len(x)))

    def attacked(
        self, network: Network, evaluations: dict[str, Evaluate], x: Tensor, labels: Tensor,
        radius: Tensor, generator: Generator, **effort: int,
    ) -> Outcome:  # fmt: skip
        return assault(
            network, evaluations, x, labels, radius, generator, dtype=self.evaluated,
            pixel_domain=self.pixel_domain, tolerance=_ROUNDING if self.deployed == "real" else 0.0,
            **effort,
        )  # fmt: skip


def radii(samples: Sequence[Sample]) -> Tensor:
    """Certified radii, 0 where there is none."""
    return torch.tensor([sample.radius or 0.0 for sample in samples], dtype=torch.float64)


def gaps(samples: Sequence[Sample]) -> Tensor:
    """How many times its certified radius the certifier's own attack of a sample reached;
    infinite without the one or the other."""
    attacks = [sample.attack_radius or torch.inf for sample in samples]
    gap = torch.tensor(attacks, dtype=torch.float64) / radii(samples)
    return torch.where(gap.isfinite(), gap, torch.inf)


def eps_within(samples: Sequence[Sample]) -> list[str]:
    """A radius that lies for some samples between what is certified and what is broken, not far
    from either: there later rungs have to decide. None where no sample has both."""
    gap, known = gaps(samples), radii(samples)
    between = (known * gap.sqrt())[(gap > _APART) & (gap < _NEAR)]
    return [f"{float(between.quantile(0.3)):.4g}"] if len(between) else []


def neighbours(
    network: Network, x: Tensor, samples: Sequence[Sample], generator: Generator, *,
    bases: int, count: int,
) -> tuple[Tensor, Tensor, list[str]]:  # fmt: skip
    """Samples around a few others, with an eps for each of those: above its radius, for the first
    further than for the last, so that the last rungs decide some of the samples, or below it
    where an attack at the radius or far from it leaves them nothing to do.
    """
    gap, known = gaps(samples), radii(samples)
    useful = (gap > _APART) & (gap < _NEAR)
    # The middle of those gaps is best, then whatever is certified.
    order = torch.where(useful, (gap - 1.25).abs(), torch.where(known > 0, 1e3, torch.inf))
    chosen = order.argsort(stable=True)[:bases]
    chosen = chosen[known[chosen] > 0]
    share = torch.linspace(0.35, 0.15, len(chosen), dtype=x.dtype)
    beyond = torch.where(useful[chosen], share * (gap[chosen] - 1).clamp(max=0.5), -0.3)
    around = x[chosen].repeat_interleave(count, 0)
    step = torch.randn(around.shape, generator=generator, dtype=x.dtype)
    reach = 0.15 * known[chosen].repeat_interleave(count)
    scale = (reach / step.flatten(1).norm(dim=1)).reshape(-1, *(1,) * (x.dim() - 1))
    around = (around + scale * step).clamp(0, 1).float().double()
    eps = dict.fromkeys(f"{radius:.4g}" for radius in (known[chosen] * (1 + beyond)).tolist())
    return around, network.logits(around).argmax(1), list(eps)
