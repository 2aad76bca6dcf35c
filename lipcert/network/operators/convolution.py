"""Convolutions in one, two or three dimensions, with groups, dilation and asymmetric padding.

Average pooling is one of them: each channel convolved with a constant kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lipcert.network.operators.base import Operator, Shape
from lipcert.network.operators.convolve import Way, convolve, transposed


@dataclass(frozen=True, eq=False, repr=False)
class Convolution(Operator):
    """Cross-correlation with zero padding.

    ``weight`` is ``(out, in / groups, *kernel)``; inputs are ``(N, in, *space)``, where ``N`` is
    the file's own leading axis (1 for nearly every network). ``padding`` holds a pair (before,
    after) a spatial axis; a negative one crops.
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        in_shape: Shape,
        *,
        stride: Sequence[int] | None = None,
        padding: Sequence[tuple[int, int]] | None = None,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
    ) -> Convolution:
        """``bias`` is one number an output channel, ``(out,)``, or broadcasts to the output."""
        dims = weight.dim() - 2
        steps = tuple(stride or (1,) * dims)
        pads = tuple(padding or ((0, 0),) * dims)
        spread = tuple(dilation or (1,) * dims)
        outputs, inputs, *kernel = weight.shape
        if dims not in (1, 2, 3) or len(in_shape) != dims + 2:
            raise ValueError(f"a {dims}-D kernel does not fit an input {list(in_shape)}")
        if groups < 1 or in_shape[1] != inputs * groups or outputs % groups:
            raise ValueError(
                f"weight {list(weight.shape)} with {groups} groups does not fit {list(in_shape)}"
            )
        if min(*steps, *spread, *kernel) < 1 or not len(steps) == len(pads) == len(spread) == dims:
            raise ValueError("kernel, stride and dilation must be positive, one for each axis")
        space = tuple(
            (size + sum(pad) - gap * (width - 1) - 1) // step + 1
            for size, pad, gap, width, step in zip(
                in_shape[2:], pads, spread, kernel, steps, strict=True
            )
        )
        if min(space) < 1:
            raise ValueError(f"the kernel {kernel} is larger than the padded input {in_shape}")
        if bias is not None and bias.dim() == 1:
            bias = bias.reshape(-1, *(1,) * dims)
        shape = (in_shape[0], outputs, *space)
        return cls(in_shape, shape, bias, weight, steps, pads, spread, groups)

    def entries(self) -> Tensor:
        return self.weight

    def _forward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        assert entries is not None
        batch, v = len(v), v.flatten(0, 1)
        if not self._native:
            v = _fit(v, self.padding)
        return convolve(v, entries, self._way).reshape(batch, *self.out_shape)

    def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        assert entries is not None
        batch, space = len(v), self.in_shape[2:]
        if not self._native:
            space = tuple(size + sum(pad) for size, pad in zip(space, self.padding, strict=True))
        v = transposed(v.flatten(0, 1), entries, self._way, space)
        if not self._native:
            v = _fit(v, [(-before, -after) for before, after in self.padding])
        return v.reshape(batch, *self.in_shape)

    @property
    def _native(self) -> bool:
        """Even, positive padding is the library's; any other is put on beforehand."""
        return all(before == after >= 0 for before, after in self.padding)

    @property
    def _way(self) -> Way:
        pads = tuple(before if self._native else 0 for before, _ in self.padding)
        return self.stride, pads, self.dilation, self.groups

    def reader(self, v: Tensor) -> Callable[[int], Tensor]:
        """By the number of a product, what it reads of values ``(B, *in_shape)`` for every output,
        0 for padding; broadcast to the outputs."""
        laid, (channels, *kernel) = _fit(v, self.padding), self.weight.shape[1:]

        def read(k: int) -> Tensor:
            windows = []
            for width, step, gap, size in zip(
                kernel[::-1], self.stride[::-1], self.dilation[::-1], self.out_shape[:1:-1],
                strict=True,
            ):  # fmt: skip
                k, tap = divmod(k, width)
                windows.append(slice(tap * gap, tap * gap + step * (size - 1) + 1, step))
            found = laid[(slice(None), slice(None), slice(k, None, channels), *windows[::-1])]
            each = self.out_shape[1] // self.groups
            return found if self.groups == 1 else found.repeat_interleave(each, 2)

        return read

    def column(self, k: int) -> Tensor:
        """What the product ``k`` of every output multiplies that with."""
        return self.weight.flatten(1)[:, k].reshape(-1, *(1,) * len(self.stride))

    @property
    def terms(self) -> int:
        return math.prod(self.weight.shape[1:])

    @property
    def transposed_terms(self) -> int:
        outputs, _, *kernel = self.weight.shape
        # Taps that meet one cell share its phase of the stride; with dilation all of them may.
        dilated = any(gap > 1 for gap in self.dilation)
        per_axis = (
            width if dilated else -(-width // step)
            for width, step in zip(kernel, self.stride, strict=True)
        )
        return outputs // self.groups * math.prod(per_axis)

    @property
    def roundings(self) -> tuple[float, float]:
        """A weight; a product, and two roundings more where it was scaled by a factor."""
        return 1.0, 3.0


def _fit(v: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros put on, or cells cut off where negative, before and after each spatial axis.

    Zeros first: a cut may be longer than what there is without them.
    """
    flat = [side for pair in reversed(sides) for side in pair]
    if min(flat) < 0 < max(flat):
        v = F.pad(v, [max(side, 0) for side in flat])
        flat = [min(side, 0) for side in flat]
    return F.pad(v, flat)
