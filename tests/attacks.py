"""L2 attacks that try to refute certificates: any margin that they reach is really reached."""

import torch
from torch import Tensor

from lipcert.network import Network


def in_ball(x: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
    """A random point of each ball; half of them on the sphere."""
    step = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    norm = step.flatten(1).norm(dim=1)
    share = torch.rand(len(x), generator=generator, dtype=x.dtype) ** 0.1
    share = torch.where(torch.rand(len(x), generator=generator) < 0.5, share, 1)
    scale = radius * share / norm.clamp(min=1e-300)
    return x + step * scale.reshape(-1, *(1,) * (x.dim() - 1))


def margins(network: Network, x: Tensor, labels: Tensor) -> Tensor:
    """``f_y − f_j`` for every class j, infinite at the label itself."""
    logits = network.logits(x)
    own = labels[:, None]
    return (logits.gather(1, own) - logits).scatter(1, own, torch.inf)


def smallest_margins(
    network: Network,
    x: Tensor,
    labels: Tensor,
    radius: Tensor,
    *,
    steps: int = 30,
    restarts: int = 3,
    seed: int = 0,
) -> Tensor:
    """The smallest margin to each class that projected gradient descent finds: ``(B, K)``.

    Each restart runs on the margin that is smallest so far; every point on the way counts.
    """
    generator = torch.Generator().manual_seed(seed)
    best = margins(network, x, labels)
    shape = (-1, *(1,) * (x.dim() - 1))
    for _ in range(restarts):
        point = in_ball(x, radius, generator)
        for _ in range(steps):
            point = point.detach().requires_grad_(True)
            found = margins(network, point, labels)
            best = torch.minimum(best, found.detach())
            (slope,) = torch.autograd.grad(found.amin(1).sum(), point)
            length = slope.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(shape)
            with torch.no_grad():
                moved = point - slope / length * (0.2 * radius).reshape(shape) - x
                norm = moved.flatten(1).norm(dim=1)
                shrink = (radius / norm.clamp(min=1e-300)).clamp(max=1).reshape(shape)
                point = x + moved * shrink * (1 - 1e-12)
        best = torch.minimum(best, margins(network, point.detach(), labels))
    return best
