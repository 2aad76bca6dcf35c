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

_Convolve = Callable[..., Tensor]
_CONVOLVE: dict[int, _Convolve] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE: dict[int, _Convolve] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


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
        if dims not in _CONVOLVE or len(in_shape) != dims + 2:
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
        batch, dims = v.shape[0], len(self.padding)
        # Even, positive padding is the library's; any other is put on beforehand.
        native = all(before == after >= 0 for before, after in self.padding)
        v = v.flatten(0, 1)
        if not native:
            v = _fit(v, self.padding)
        pads = tuple(before if native else 0 for before, _ in self.padding)
        out = _CONVOLVE[dims](v, entries, None, self.stride, pads, self.dilation, self.groups)
        return out.reshape(batch, *self.out_shape)

    def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        assert entries is not None
        batch, dims = v.shape[0], len(self.padding)
        # What the transpose yields lives on the padded grid, from its first cell on, and a stride
        # can leave cells at its end unread.
        unread = [
            size + sum(pad) - ((have - 1) * step + gap * (width - 1) + 1)
            for size, have, pad, step, gap, width in zip(
                self.in_shape[2:],
                self.out_shape[2:],
                self.padding,
                self.stride,
                self.dilation,
                self.weight.shape[2:],
                strict=True,
            )
        ]
        v, transposed = v.flatten(0, 1), _TRANSPOSE[dims]
        if all(before == after >= 0 for before, after in self.padding):
            pads = tuple(before for before, _ in self.padding)
            v = transposed(v, entries, None, self.stride, pads, unread, self.groups, self.dilation)
        else:
            v = transposed(v, entries, None, self.stride, 0, 0, self.groups, self.dilation)
            sides = [
                (-before, rest - after)
                for (before, after), rest in zip(self.padding, unread, strict=True)
            ]
            v = _fit(v, sides)
        return v.reshape(batch, *self.in_shape)

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


def _fit(v: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros put on, or cells cut off where negative, before and after each spatial axis.

    Zeros first: a cut may be longer than what there is without them.
    """
    flat = [side for pair in reversed(sides) for side in pair]
    if min(flat) < 0 < max(flat):
        v = F.pad(v, [max(side, 0) for side in flat])
        flat = [min(side, 0) for side in flat]
    return F.pad(v, flat)
