"""A deterministic bound for convolutions: the largest singular value over all frequencies.

With stride 1 and zero padding a convolution is a compression of the circular one on the padded
grid, whose norm is the largest over the frequencies of the ``out × in`` symbol (Sedghi, Gupta and
Long, ICLR 2019, for the circular case). A stride ``s`` is first split into its ``s`` phases an
axis, which become further input channels of a convolution of stride 1.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lipcert.network.operators import Convolution
from lipcert.norms.matrix import spectral_norm
from lipcert.norms.scaling import divided, exponents, lifted
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64_TINY, gamma

# Channels: the singular values of a symbol cost their cube, at every frequency of the grid.
_LARGEST_SYMBOL = 512
# Entries of symbols in memory at once, 64 MiB of complex numbers.
_CHUNK = 2**22


def convolution_norm(operator: Convolution) -> float | None:
    """An upper bound of ``‖A‖₂``, or None where the symbols are too large to be worth it."""
    taps = _phases(operator)
    grid = [
        math.ceil((size + max(0, sum(pad))) / step) + width - 1
        for size, pad, step, width in zip(
            operator.in_shape[2:], operator.padding, operator.stride, taps.shape[3:], strict=True
        )
    ]
    return _largest_symbol(taps, grid)


def symbol_work(operator: Convolution) -> float:
    """About how many products the symbols' singular values take: at every frequency the Gram matrix
    on the smaller side, in real numbers."""
    strides, grid = math.prod(operator.stride), 1.0
    for size, pad, step, width in zip(
        operator.in_shape[2:], operator.padding, operator.stride, operator.weight.shape[2:],
        strict=True,
    ):  # fmt: skip
        grid *= math.ceil((size + max(0, sum(pad))) / step) + math.ceil(width / step)
    sides = operator.weight.shape[0] / operator.groups, operator.weight.shape[1] * strides
    return operator.groups * grid / 2 * (2 * min(sides)) ** 2 * 2 * max(sides)


def unfolded_norm(operator: Convolution) -> float:
    """An upper bound of ``‖A‖₂`` from its kernel alone (Singla and Feizi, ICLR 2021).

    With ``W_t`` the matrix of the tap ``t`` and ``P_t`` what picks the input of each output there,
    ``A = Σ_t W_t ⊗ P_t``, and every ``P_t`` picks no input twice. ``A`` is ``[W_1 … W_T]`` behind
    the stack of all ``P_t``, of which each input is picked at most ``T`` times: so
    ``‖A‖ ≤ √T ‖[W_1 … W_T]‖``; and in the same way from the other side ``√T`` times the norm of all
    ``W_t`` one over the other. For a group of channels each.
    """
    weight = operator.weight.double().cpu()
    taps = math.prod(weight.shape[2:])
    groups = weight.reshape(operator.groups, -1, *weight.shape[1:]).flatten(3)
    wide = groups.flatten(2)
    tall = groups.transpose(2, 3).flatten(1, 2)
    least = min(float(spectral_norm(side).max()) for side in (wide, tall))
    return OUT64.times(least, OUT64.up(math.sqrt(taps), 1))


def torus_norm(operator: Convolution) -> float | None:
    """The same where the padding continues the input around, so that the map is circular on the
    grid itself, or a part of that; strides must divide its extents."""
    space = zip(operator.in_shape[2:], operator.stride, strict=True)
    return _largest_symbol(_phases(operator), [size // step for size, step in space])


def _largest_symbol(taps: Tensor, grid: list[int]) -> float | None:
    """The largest singular value over all frequencies of a grid, from above."""
    groups, outputs, inputs = taps.shape[:3]
    if max(outputs, inputs) > _LARGEST_SYMBOL:
        return None
    dims, reach = len(grid), taps.shape[3:]
    flat = taps.reshape(groups * outputs * inputs, -1)
    offsets = torch.tensor(list(itertools.product(*(range(width) for width in reach))))
    # Real taps: a frequency and its conjugate share their singular values.
    axes = [range(grid[0] // 2 + 1), *(range(size) for size in grid[1:])]
    frequencies = torch.tensor(list(itertools.product(*axes)))
    cells = torch.tensor(grid, dtype=torch.float64)
    largest = 0.0
    step = max(1, _CHUNK // (4 * flat.shape[0]))
    for part in torch.split(frequencies, step):
        # Reduced to one turn as integers, so that the angle is accurate.
        turns = ((part[:, None, :] * offsets) % torch.tensor(grid)).double() / cells
        angle = 2 * math.pi * turns.sum(-1)
        real, imaginary = torch.cos(angle) @ flat.mT, torch.sin(angle) @ flat.mT
        shape = (len(part) * groups, outputs, inputs)
        real, imaginary = real.reshape(shape), imaginary.reshape(shape)
        symbol = torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)
        largest = max(largest, float(spectral_norm(symbol).max()))
    # Each entry of a symbol is within γ Σ|taps| of the truth, angles and all.
    spread = taps.abs().flatten(3).sum(3).flatten(1)
    by = exponents(spread.amax(1))
    spread = OUT64.up(spread, len(offsets))
    size = float(lifted(OUT64.length(divided(spread, by[:, None])), by).max())
    # What underflows in a symbol is less than this of any of its entries.
    lost = 2 * len(offsets) * FLOAT64_TINY * math.sqrt(outputs * inputs)
    return OUT64.add(largest, 2 * gamma(len(offsets) + 16 * (dims + 1)) * size, lost)


def _phases(operator: Convolution) -> Tensor:
    """The taps as ``(groups, out, in · Π strides, *reach)`` of a convolution of stride 1."""
    weight = operator.weight.double().cpu()
    groups, dims = operator.groups, len(operator.stride)
    outputs, inputs, *kernel = weight.shape
    reach = [
        ((width - 1) * gap) // step + 1
        for width, gap, step in zip(kernel, operator.dilation, operator.stride, strict=True)
    ]
    taps = weight.new_zeros(groups, outputs // groups, inputs, *operator.stride, *reach)
    grouped = weight.reshape(groups, outputs // groups, inputs, *kernel)
    for place in itertools.product(*(range(width) for width in kernel)):
        positions = [tap * gap for tap, gap in zip(place, operator.dilation, strict=True)]
        phase = [at % step for at, step in zip(positions, operator.stride, strict=True)]
        shift = [at // step for at, step in zip(positions, operator.stride, strict=True)]
        target = taps
        for at in (*phase, *shift):
            target = target.select(3, at)
        source = grouped
        for at in place:
            source = source.select(3, at)
        target.copy_(source)
    return taps.flatten(2, 2 + dims)
