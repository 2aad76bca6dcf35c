"""Random numbers from a recorded seed: the coins of the randomised bounds.

A counter-based generator from the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014):
each vector is a pure function of (seed, stream, call), so it is the same on every device and for
every batching. ``norms.budget`` gives out streams and calls, of which no two bounds share a pair: a
stream is a sample's number, and a call a coin's, ``(B,)`` or one for all. The seed has 128 bits;
its two words go separate ways to two keys of a vector, of which one counts and the other is added
between two finalisers, so that no 64 bits of state tell a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.chunks import at_once


def unit_vectors(seed: int, streams: Tensor, call: int | Tensor, like: Tensor) -> Tensor:
    """Uniform on the unit sphere of each sample, restricted to where ``like`` is not 0.

    ``seed``: below 2^128. ``streams``: ``(B,)`` int64. ``like``: ``(B, *shape)``; it gives shape,
    dtype, device and support. A sample with no support gets the zero vector.
    """
    normal = normal_numbers(seed, streams, call, math.prod(like.shape[1:]))
    normal = torch.where(like.flatten(1) != 0, normal, 0)
    norm = normal.norm(dim=1, keepdim=True)
    return (normal / torch.where(norm > 0, norm, 1)).reshape(like.shape).to(like.dtype)


def normal_numbers(seed: int, streams: Tensor, call: int | Tensor, size: int) -> Tensor:
    """Normal, by Box and Muller: ``(B, size)`` in float64."""
    half = (size + 1) // 2
    even = uniform(seed, streams, call, 2 * half)
    length = torch.sqrt(-2 * torch.log(even[:, :half]))
    angle = 2 * math.pi * even[:, half:]
    return torch.cat([length * torch.cos(angle), length * torch.sin(angle)], 1)[:, :size]


def cauchy_numbers(
    seed: int, streams: Tensor, call: int | Tensor, size: int, places: Tensor | None = None
) -> Tensor:
    """Cauchy, tangents of uniform angles: ``(B, size)`` in float64; ``places``: as of
    ``uniform``."""
    even = uniform(seed, streams, call, size, places).sub_(0.5).mul_(math.pi)
    if even.device.type != "cpu":
        return even.tan_()
    # Of the same accuracy, within a few units of roundoff, and several times faster.
    np.tan(even.numpy(), out=even.numpy())
    return even


def rough_cauchy(seed: int, own: Sequence[int], size: int) -> Tensor:
    """Cauchy numbers for guesses, which assure nothing: ``(size,)`` in float32, the same for the
    same ``seed`` and ``own`` numbers."""
    words = [part % 2**32 for number in (seed, *own) for part in (number, number >> 32)]
    generator = np.random.Generator(np.random.SFC64([*words, seed >> 64]))
    even = generator.random(size, dtype=np.float32)
    even -= np.float32(0.5)
    even *= np.float32(math.pi)
    return torch.from_numpy(np.tan(even, out=even))


def uniform(
    seed: int, streams: Tensor, call: int | Tensor, size: int, places: Tensor | None = None
) -> Tensor:
    """Uniform in (0, 1), of 53 bits, moved off zero: ``(B, size)`` in float64. ``places``,
    ``(B, size)`` int64: which of its stream's numbers a sample gets, the first ``size`` by
    default."""
    if not 0 <= seed < 2**128:
        raise ValueError(f"{seed}: a seed has 128 bits")
    words = _mix(torch.tensor([_signed(seed % 2**64), _signed((seed >> 64) + 1)])).tolist()
    counting, added = _mix(_mix(torch.stack([streams + word for word in words])) + call)
    found = torch.empty(len(streams), size, dtype=torch.float64, device=streams.device)
    # Some at a time, in place: what lies between need not leave the cache.
    chunk = at_once(_CACHED * len(streams), streams.device, each=len(streams))
    for first in range(0, size, chunk):
        last = min(first + chunk, size)
        if streams.device.type == "cpu" and places is None:
            _fill(found[:, first:last].numpy(), counting.numpy(), added.numpy(), first)
            continue
        if places is None:
            counter = torch.arange(first + 1, last + 1, device=streams.device)
        else:
            counter = places[:, first:last] + 1
        bits = _mix_in_place(counting[:, None] + counter.mul_(_GOLDEN))
        bits = _mix_in_place(bits.bitwise_xor_(added[:, None]))
        found[:, first:last] = bits.bitwise_right_shift_(11).bitwise_and_(2**53 - 1)
    return found.mul_(2.0**-53).add_(2.0**-54)


def _fill(found: NDArray[Any], counting: NDArray[Any], added: NDArray[Any], first: int) -> None:
    """The same words in numpy, which is twice as fast: its integers have no sign."""
    width = found.shape[1]
    counter = np.arange(first + 1, first + 1 + width, dtype=np.uint64)
    counter *= np.uint64(_GOLDEN % 2**64)
    for row, start, other in zip(
        found, counting.view(np.uint64), added.view(np.uint64), strict=True
    ):
        bits = counter + start
        for word in (None, other):
            if word is not None:
                bits ^= word
            bits += np.uint64(_GOLDEN % 2**64)
            for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
                bits ^= bits >> np.uint64(shift)
                if factor is not None:
                    bits *= np.uint64(factor % 2**64)
        bits >>= np.uint64(11)
        row[:] = bits


def _signed(word: int) -> int:
    """The 64-bit word as the integer that wraps to it."""
    return word - 2**64 if word >= 2**63 else word


# How many numbers are made at once.
_CACHED = 2**15
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix(word: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 products wrap, shifts are made logical by masks."""
    return _mix_in_place(word.clone())


def _mix_in_place(word: Tensor) -> Tensor:
    word.add_(_GOLDEN)
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        word.bitwise_xor_((word >> shift).bitwise_and_(2 ** (64 - shift) - 1))
        if factor is not None:
            word.mul_(factor)
    return word
