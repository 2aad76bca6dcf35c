"""The ways in which people write the sorting of pairs in torch, one function each.

Each takes ``(B, C, …)`` and sorts pairs of channels: halves ``(c, c + C/2)`` or neighbours
``(2c, 2c + 1)``, larger or smaller ones first. All are 1-Lipschitz.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Sorting = Callable[[Tensor], Tensor]
SORTINGS: dict[str, Sorting] = {}


def sorting(function: Sorting) -> Sorting:
    SORTINGS[function.__name__] = function
    return function


def halves(z: Tensor) -> tuple[Tensor, Tensor]:
    a, b = z.chunk(2, 1)
    return a, b


def neighbours(z: Tensor) -> Tensor:
    return z.reshape(z.shape[0], z.shape[1] // 2, 2, *z.shape[2:])


@sorting
def relu_once(z: Tensor) -> Tensor:
    a, b = halves(z)
    d = F.relu(a - b)
    return torch.cat([b + d, a - d], 1)


@sorting
def relu_of_the_other_sign(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([a + F.relu(b - a), b - F.relu(b - a)], 1)


@sorting
def relu_of_both_signs(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([F.relu(a - b) + b, b - F.relu(b - a)], 1)


@sorting
def absolute_halved(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([(a + b + (a - b).abs()) / 2, (a + b - (a - b).abs()) / 2], 1)


@sorting
def absolute_of_halves(z: Tensor) -> Tensor:
    a, b = halves(z)
    s, d = 0.5 * (a + b), 0.5 * torch.abs(b - a)
    return torch.cat([s + d, s - d], 1)


@sorting
def negated_maximum(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([torch.max(a, b), -torch.max(-a, -b)], 1)


@sorting
def negated_minimum(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([-torch.min(-a, -b), torch.min(a, b)], 1)


@sorting
def sum_less_maximum(z: Tensor) -> Tensor:
    a, b = halves(z)
    m = torch.max(a, b)
    return torch.cat([m, a + b - m], 1)


@sorting
def sum_less_minimum(z: Tensor) -> Tensor:
    a, b = halves(z)
    m = torch.min(a, b)
    return torch.cat([a + (b - m), m], 1)


@sorting
def where_greater(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([torch.where(a > b, a, b), torch.where(a > b, b, a)], 1)


@sorting
def where_less(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([torch.where(a < b, b, a), torch.where(a <= b, a, b)], 1)


@sorting
def masked(z: Tensor) -> Tensor:
    a, b = halves(z)
    m = (a > b).float()
    return torch.cat([m * a + (1 - m) * b, m * b + (1 - m) * a], 1)


@sorting
def masked_twice(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([a * (a > b) + b * (a <= b), b * (a > b) + a * (a <= b)], 1)


@sorting
def clamped(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([(a - b).clamp(min=0) + b, a - (a - b).clamp_min(0)], 1)


@sorting
def stacked_sort(z: Tensor) -> Tensor:
    s = torch.stack(halves(z), 1).sort(1, descending=True)[0]
    return torch.cat([s[:, 0], s[:, 1]], 1)


@sorting
def stacked_topk(z: Tensor) -> Tensor:
    s = torch.stack(halves(z), -1).topk(2, -1)[0]
    return torch.cat([s[..., 0], s[..., 1]], 1)


@sorting
def stacked_amax(z: Tensor) -> Tensor:
    s = torch.stack(halves(z), -1)
    return torch.cat([s.amax(-1), s.amin(-1)], 1)


@sorting
def neighbours_sorted(z: Tensor) -> Tensor:
    return neighbours(z).sort(2)[0].reshape(z.shape)


@sorting
def neighbours_reduced(z: Tensor) -> Tensor:
    v = neighbours(z)
    return torch.stack([v.max(2)[0], v.min(2)[0]], 2).reshape(z.shape)


@sorting
def halves_reduced(z: Tensor) -> Tensor:
    v = z.reshape(z.shape[0], 2, z.shape[1] // 2, *z.shape[2:])
    return torch.stack([v.amax(1), v.amin(1)], 1).flatten(1, 2)


@sorting
def strided(z: Tensor) -> Tensor:
    a, b = z[:, ::2], z[:, 1::2]
    return torch.stack([torch.max(a, b), torch.min(a, b)], 2).flatten(1, 2)


@sorting
def strided_relu(z: Tensor) -> Tensor:
    a, b = z[:, 0::2], z[:, 1::2]
    d = F.relu(a - b)
    return torch.stack([b + d, a - d], 2).flatten(1, 2)


@sorting
def split_relu(z: Tensor) -> Tensor:
    a, b = torch.split(z, z.shape[1] // 2, 1)
    return torch.cat([F.relu(a - b) + b, a - F.relu(a - b)], 1)


@sorting
def unbound(z: Tensor) -> Tensor:
    a, b = neighbours(z).unbind(2)
    return torch.stack([a - F.relu(a - b), b + F.relu(a - b)], 2).reshape(z.shape)


@sorting
def unfolded(z: Tensor) -> Tensor:
    v = z.unfold(1, 2, 2)
    return torch.stack([v.amax(-1), v.amin(-1)], 2).flatten(1, 2)


@sorting
def leaky(z: Tensor) -> Tensor:
    a, b = halves(z)
    d = F.leaky_relu(a - b, -1.0)
    return torch.cat([(a + b + d) * 0.5, (a + b - d) * 0.5], 1)


@sorting
def indexed(z: Tensor) -> Tensor:
    even, odd = torch.arange(0, z.shape[1], 2), torch.arange(1, z.shape[1], 2)
    a, b = z[:, even], z[:, odd]
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


@sorting
def mean_and_distance(z: Tensor) -> Tensor:
    v = z.reshape(z.shape[0], 2, z.shape[1] // 2, *z.shape[2:])
    m, d = v.mean(1), (v[:, 0] - v[:, 1]).abs() / 2
    return torch.cat([m + d, m - d], 1)


@sorting
def pooled(z: Tensor) -> Tensor:
    v = neighbours(z.reshape(z.shape[0], z.shape[1], -1)).transpose(2, 3)
    flat = v.reshape(z.shape[0], -1, 2)
    most, least = F.max_pool1d(flat, 2), -F.max_pool1d(-flat, 2)
    both = torch.cat([most, least], -1).reshape(v.shape)
    return both.transpose(2, 3).reshape(z.shape)


@sorting
def less_the_half(z: Tensor) -> Tensor:
    a, b = halves(z)
    s, d = a + b, torch.abs(b - a)
    return torch.cat([(s + d) * 0.5, s - (s + d) * 0.5], 1)


@sorting
def swapped_and_chosen(z: Tensor) -> Tensor:
    """Every pair is compared twice, and what is wanted of either is chosen."""
    half = z.shape[1] // 2
    other = torch.roll(z, half, 1)
    first = (torch.arange(z.shape[1]) < half).reshape(1, -1, *(1,) * (z.dim() - 2))
    return torch.where(first, torch.max(z, other), torch.min(z, other))


@sorting
def swapped_and_masked(z: Tensor) -> Tensor:
    half = z.shape[1] // 2
    other = torch.roll(z, half, 1)
    first = (torch.arange(z.shape[1]) < half).float().reshape(1, -1, *(1,) * (z.dim() - 2))
    return first * torch.max(z, other) + (1 - first) * torch.min(z, other)


@sorting
def clamped_by_the_other(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat([torch.clamp(a, min=b), torch.clamp(a, max=b)], 1)


@sorting
def sign_times_difference(z: Tensor) -> Tensor:
    a, b = halves(z)
    d = (a - b) * torch.sign(a - b)
    return torch.cat([(a + b + d) / 2, (a + b - d) / 2], 1)


@sorting
def chosen_difference(z: Tensor) -> Tensor:
    a, b = halves(z)
    d = torch.where(a > b, a - b, torch.zeros_like(a))
    return torch.cat([b + d, a - d], 1)


@sorting
def largest_of_difference_and_nothing(z: Tensor) -> Tensor:
    a, b = halves(z)
    return torch.cat(
        [b + torch.max(a - b, torch.zeros(1)), a - torch.max(a - b, torch.zeros(1))], 1
    )


@sorting
def by_matrices(z: Tensor) -> Tensor:
    """Sums and differences as a layer writes them, with most of its weights 0."""
    half = z.shape[1] // 2
    rows = [[float(i == j) for j in range(half)] for i in range(half)]
    one = torch.tensor(rows, dtype=z.dtype)
    both, apart = torch.cat([one, one], 1), torch.cat([one, -one], 1)
    if z.dim() == 2:
        s, d = F.linear(z, both), F.linear(z, apart).abs()
    else:
        s, d = F.conv2d(z, both[:, :, None, None]), F.conv2d(z, apart[:, :, None, None]).abs()
    return torch.cat([(s + d) / 2, (s - d) / 2], 1)
