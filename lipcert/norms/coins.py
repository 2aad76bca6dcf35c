"""Random unit vectors from a recorded seed: the coins of the randomised norms.

A counter-based generator from the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014):
each vector is a pure function of (seed, stream, call), so it is the same on every device and for
every batching, and no two norms share one. A stream is a sample's index; -1 is what all samples
share. The seed has 128 bits; its two words go separate ways to two keys of a vector, of which one
counts and the other is added between two finalisers, so that no 64 bits of state tell a vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit_vectors(seed: int, streams: Tensor, call: int, like: Tensor) -> Tensor:
    """Uniform on the unit sphere of each sample, restricted to where ``like`` is not 0.

    ``seed``: below 2^128. ``streams``: ``(B,)`` int64. ``like``: ``(B, *shape)``; it gives shape,
    dtype, device and support. A sample with no support gets the zero vector.
    """
    size = math.prod(like.shape[1:])
    half = (size + 1) // 2
    even = uniform(seed, streams, call, 2 * half)
    length = torch.sqrt(-2 * torch.log(even[:, :half]))
    angle = 2 * math.pi * even[:, half:]
    normal = torch.cat([length * torch.cos(angle), length * torch.sin(angle)], 1)[:, :size]
    normal = torch.where(like.flatten(1) != 0, normal, 0)
    norm = normal.norm(dim=1, keepdim=True)
    return (normal / torch.where(norm > 0, norm, 1)).reshape(like.shape).to(like.dtype)


def uniform(seed: int, streams: Tensor, call: int, size: int) -> Tensor:
    """Uniform in (0, 1), of 53 bits, moved off zero: ``(B, size)`` in float64."""
    if not 0 <= seed < 2**128:
        raise ValueError(f"{seed}: a seed has 128 bits")
    words = (_signed(seed % 2**64), _signed(seed >> 64))
    counting, added = (
        _mix(_mix(_mix(torch.full_like(streams, word) + lane) + streams) + call)
        for lane, word in enumerate(words)
    )
    counter = torch.arange(1, size + 1, device=streams.device)
    bits = _mix(_mix(counting[:, None] + counter * _GOLDEN) ^ added[:, None])
    return ((bits >> 11) & (2**53 - 1)).to(torch.float64) * 2.0**-53 + 2.0**-54


def _signed(word: int) -> int:
    """The 64-bit word as the integer that wraps to it."""
    return word - 2**64 if word >= 2**63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix(word: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 products wrap, shifts are made logical by masks."""
    word = word + _GOLDEN
    word = (word ^ ((word >> 30) & (2**34 - 1))) * _FIRST
    word = (word ^ ((word >> 27) & (2**37 - 1))) * _SECOND
    return word ^ ((word >> 31) & (2**33 - 1))
