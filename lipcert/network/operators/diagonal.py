"""Element-wise scale and shift: normalisation, batch norm in evaluation mode, constants."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lipcert.network.operators.base import Operator, Shape


@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(Operator):
    """``v ↦ s∘v + b``; ``scale`` and ``bias`` broadcast to the shape, None is 1 and 0.

    With neither it is the identity: a value that is stored in another format, or must stay within
    its range (``Node.format``).
    """

    scale: Tensor | None

    @classmethod
    def of(cls, scale: Tensor | None, bias: Tensor | None, shape: Shape) -> Diagonal:
        return cls(shape, shape, bias, scale)

    @property
    def is_identity(self) -> bool:
        return self.scale is None and self.bias is None

    def entries(self) -> Tensor | None:
        return self.scale

    def _forward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        return v if entries is None else v * entries

    def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        return v if entries is None else v * entries

    @property
    def terms(self) -> int:
        return 0 if self.scale is None else 1

    @property
    def transposed_terms(self) -> int:
        return self.terms

    @property
    def roundings(self) -> tuple[float, float]:
        """Of what is shifted or scaled by constants: the root and the quotients of a batch norm, in
        either form, ``(x − μ) s + β`` or ``x s + (β − μ s)``."""
        return 3.0, 5.0

    @property
    def is_elementwise(self) -> bool:
        return True
