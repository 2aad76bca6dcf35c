"""The last check of every certificate: the deployed file itself, run at points inside its radius.

Bounds, and the attack, know the network as it was read. Where the reading is not what the file
computes, a certificate can be proven rightly and be false, and one of the samples that were
cross-checked need not show it. So the points of a ball where the reading's margins seem least are
run through the file, the sample itself among them. That proves nothing, and asks little of a
reading that is wrong somewhere near: the file gives another class, a tie, or no number, where the
certificate says that none is.

Where the label has to be among several best, it says so once as many rivals reach it; where its
probability has to be above others' by so much, once it is not.

Claims that cover the file's own rounding (``strict``) admit no other class and no tie. A claim
about real numbers, or about a wider format than the file's, leaves that rounding out: there the
file's margin contradicts it where another class wins by more than the cross-check takes for
rounding, ``TOLERANCE`` of the largest logit for each of both logits. What is not finite confirms
nothing and is refused in either case.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.certification.heads import PLAIN, Head
from lipcert.network import Network
from lipcert.options import Options
from lipcert.rounding import gamma

# The nearest classes, for each of which two points are sought.
_CLASSES = 2
# So far inside a radius is a point sought that no rounding takes it out.
_WITHIN = 1 - 2.0**-20


class File(Protocol):
    """The deployed file, see ``lipcert.loading.DeployedFile``; ``tolerance``: what the logits of
    two readings may differ by, relative to the largest one."""

    double: bool

    @property
    def tolerance(self) -> float: ...

    def __call__(self, pixels: NDArray[Any], /) -> NDArray[Any]: ...


class FileCheck:
    """Runs the ``file`` at points inside certified radii; ``network`` is how it was read, without
    the ``softmax`` at its end."""

    def __init__(
        self, file: File, network: Network, options: Options, *, softmax: bool = False
    ) -> None:
        self.head, self.softmax = Head.of(options), softmax
        self.file, self.pixel_domain = file, options.pixel_domain
        # In the file's own type: numbers that it holds overflow nowhere but where its own do.
        self.network = network.to(dtype=torch.float64 if file.double else torch.float32)
        self.strict = options.deployed != "real" and (file.double or options.deployed != "float64")

    def contradictions(
        self, x: Tensor, labels: Tensor, radius: Tensor, towards: Tensor
    ) -> dict[int, str]:
        """By row, what the file says against the claim that every point within ``radius`` ``(B,)``
        of ``x`` ``(B, *shape)`` is of the class ``labels`` ``(B,)``.

        ``towards`` ``(B, *shape)``: points that an attack found outside, or the samples themselves.
        """
        points = probes(
            self.network, x, labels, radius, towards=towards, pixel_domain=self.pixel_domain,
            head=self.head,
        )  # fmt: skip
        flat = points.flatten(0, 1).cpu().numpy()
        outputs = self.file(flat)
        margins = self._margins(outputs, labels.repeat_interleave(points.shape[1]))
        logits, margins = (a.reshape(*points.shape[:2], *a.shape[1:]) for a in (outputs, margins))
        finite = np.isfinite(logits).all(2)
        slack = 0.0 if self.strict else 2 * self.file.tolerance * np.abs(logits).max(2)
        wrong = ~finite | (~(margins > 0) if self.strict else ~(margins >= -slack))
        found: dict[int, str] = {}
        for row in np.flatnonzero(wrong.any(1)).tolist():
            place = int(wrong[row].argmax())
            distance = float((points[row, place] - x[row].to(points)).norm())
            said = "no finite logits"
            if finite[row, place]:
                said = self._said(logits[row, place], margins[row, place])
            found[row] = (
                f"the deployed file gives {said} at a distance of {distance:.6g}, inside the "
                f"certified radius {float(radius[row]):.6g} of class {int(labels[row])}; please "
                "report this"
            )
        return found

    def _said(self, outputs: NDArray[Any], margin: float) -> str:
        """What outputs ``(K,)`` say, in a word."""
        if self.head.top_k > 1:
            return f"{self.head.top_k} classes that reach it"
        if self.head.margin:
            return f"no margin above {self.head.margin:g}"
        found = self.head.competing(torch.from_numpy(outputs)[None])
        return "a tie" if margin == 0 else f"class {int(found.argmax())}"

    def _margins(self, outputs: NDArray[Any], labels: Tensor) -> NDArray[Any]:
        """What the file's outputs ``(n, K)`` say of the claim, ``(n,)``: not positive where it does
        not hold."""
        values, labels = torch.from_numpy(outputs), labels.cpu()
        if self.head.margin and self.softmax:
            # They are probabilities, or the logarithms of such.
            values = values.exp() if bool((values <= 0).all()) else values
            gap = replace(self.head, margin=0.0).margins(values, labels).amin(1) - self.head.margin
            return gap.numpy()
        found: NDArray[Any] = self.head.least(self.head.margins(values, labels), labels).numpy()
        return found


def probes(
    network: Network,
    x: Tensor,
    labels: Tensor,
    radius: Tensor,
    *,
    towards: Tensor,
    pixel_domain: bool = False,
    head: Head = PLAIN,
) -> Tensor:
    """``(B, 8, *shape)`` in float64, 6 where there are two classes: the samples ``x``, and points
    within ``radius`` of them, at distances computed exactly, whose values the network's own type
    holds.

    On the sphere: towards what an attack has found; down the gradient of the margin to each of the
    nearest classes, at the sample, then at the point that was reached; and up and down that of the
    label's logit, which moves the values inside the network even where margins do not change.
    """
    dtype, x = network.anchor.dtype, x.to(network.anchor.device, torch.float64)
    labels = labels.to(x.device)
    ball = _Ball(x, radius.to(x), dtype, pixel_domain)
    with torch.no_grad():
        logits = network.logits(x.to(dtype))
    near = head.nearest(head.margins(logits, labels), _CLASSES)
    # Each of the last goes with those before it that have to overtake the label too.
    before, classes = near[:, : head.top_k - 1], near[:, head.top_k - 1 :]
    count = classes.shape[1]

    def slopes(points: Tensor) -> Tensor:
        """At points ``(B, t, *shape)``: of the margins to the ``classes``, then of the logit."""
        with torch.enable_grad():
            rows = points.flatten(0, 1).to(dtype).requires_grad_()
            found = network.logits(rows).reshape(*points.shape[:2], -1)
            own = found.gather(2, labels[:, None, None].expand(-1, points.shape[1], 1))
            away = found[:, :count].gather(2, classes[..., None])
            others = found[:, :count].gather(2, before[:, None].expand(-1, count, -1))
            more = before.shape[1] * own[:, :count].sum() - others.sum()
            (slope,) = torch.autograd.grad(own.sum() - away.sum() + more, rows)
        return slope.double().reshape(points.shape)

    sample = x[:, None]
    slope = slopes(sample.expand(-1, count + 1, *x.shape[1:]))
    first = ball.at(-slope[:, :count])
    second = ball.at(-slopes(first))
    along = ball.at(torch.cat([slope[:, count:], -slope[:, count:]], 1))
    found = ball.at(towards.to(x)[:, None] - sample)
    return torch.cat([sample, found, first, second, along], 1)


class _Ball:
    """Points within ``radius`` ``(B,)`` of ``x`` ``(B, *shape)`` float64, in a type."""

    def __init__(self, x: Tensor, radius: Tensor, dtype: torch.dtype, images: bool) -> None:
        self.x, self.radius, self.dtype, self.images = x[:, None], radius[:, None], dtype, images
        self.excess = 1 + gamma(x[0].numel() + 4)
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))
        self.noise = noise.to(x)

    def at(self, way: Tensor) -> Tensor:
        """The points of the sphere in the direction ``way`` ``(B, t, *shape)``, a random one where
        that is none, rounded towards the sample; the sample where rounding leaves the ball."""
        # In terms of its largest entry: squares of tiny ones would vanish.
        most = way.flatten(2).abs().amax(2)
        useful = most.isfinite() & (most > 0)
        way = torch.where(self._wide(useful, way), way / self._wide(most, way), self.noise)
        offset = way * self._wide(self.radius * _WITHIN / way.flatten(2).norm(dim=2), way)
        point = self.x + offset
        point = point.clamp(0, 1) if self.images else point
        rounded = point.to(self.dtype)
        beyond = (rounded.double() - self.x).abs() > (point - self.x).abs()
        inward = rounded.nextafter(self.x.to(self.dtype).expand_as(rounded))
        point = torch.where(beyond, inward, rounded).double()
        distance = (point - self.x).flatten(2).norm(dim=2) * self.excess
        return torch.where(self._wide(distance <= self.radius, point), point, self.x)

    @staticmethod
    def _wide(values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(*values.shape, *(1,) * (like.dim() - values.dim()))
