"""Whether a device's products of matrices are sums of products, with all their bits.

The error terms of every bound suppose that an entry of a product is a sum of products of the two
entries that meet there, each rounded to the type, in any order. Libraries have faster ways: TF32
and bfloat16 cut the factors, Winograd's and Fourier's methods mix entries that do not meet, float64
is put together from narrow integers on a scale that a whole row shares, and long sums are split and
kept in fewer bits. Each is visible in products whose exact result is known and is a number of the
type, and is looked for here in both types, with sizes for which libraries choose other kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lipcert.errors import CannotCertify
from lipcert.network.operators.convolve import convolve, transposed

# By these cuBLAS puts wide products together from narrow ones.
_EMULATION = ("CUBLAS_EMULATE_DOUBLE_PRECISION", "CUBLAS_EMULATE_SINGLE_PRECISION")

Product = Callable[[Tensor, Tensor], Tensor]

# Lengths of sums: one number, an odd one beside the width of vector units, and such as libraries
# give to kernels of their own.
_SIZES = (1, 33, 256, 512)
# Terms of a sum that has every bit of the type in the end.
_TERMS = 4096
# How much larger than the others one entry of a row is: more than any shared scale spans.
_APART = {torch.float64: 2.0**200, torch.float32: 2.0**60}


def check_sums(device: torch.device | str) -> None:
    """Raises ``CannotCertify``, which names the type and what was lost."""
    for name in _EMULATION:
        if os.environ.get(name, "0").strip() not in ("", "0"):
            raise CannotCertify(
                f"{name} is set, by which cuBLAS computes no plain sums of products: unset it"
            )
    for dtype in (torch.float64, torch.float32):
        for what, holds in _probes(dtype, device):
            if not holds:
                raise CannotCertify(
                    f"{dtype} on {device}: {what}: a fast mode of its libraries computes no plain "
                    "sums of products; switch it off, or use --device cpu"
                )


def _probes(dtype: torch.dtype, device: torch.device | str) -> Iterator[tuple[str, bool]]:
    """What would be wrong, and whether it is not."""
    for size in _SIZES:
        for several in (False, True):
            product = _batched if several else torch.matmul
            shape = f"of {size} × {size}" + (" in a batch" if several else "")
            yield f"products {shape} cut their factors", _keeps_bits(product, size, dtype, device)
            yield (
                f"products {shape} lose what is small beside a large entry",
                _keeps_small(product, size, dtype, device),
            )
    yield "long sums are kept in fewer bits", _keeps_sums(dtype, device)
    yield "convolutions mix what no window holds together", _keeps_windows(dtype, device)


def _batched(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.expand(3, *a.shape).contiguous(), b.expand(3, *b.shape).contiguous())[1]


def _full(size: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """So many numbers with ones in their first and last bits."""
    unit = torch.finfo(dtype).eps
    return 1 + (2 * torch.arange(size, dtype=dtype, device=device) + 1) * unit


def _keeps_bits(
    product: Product, size: int, dtype: torch.dtype, device: torch.device | str
) -> bool:
    full = torch.diag(_full(size, dtype, device))
    one = torch.eye(size, dtype=dtype, device=device)
    return bool((product(full, one) == full).all() and (product(one, full) == full).all())


def _keeps_small(
    product: Product, size: int, dtype: torch.dtype, device: torch.device | str
) -> bool:
    """Beside a large entry in its row, and in its column, each other one is picked out alone."""
    if size == 1:
        return True
    row = _full(size, dtype, device)
    row[0] = _APART[dtype]
    entries = row.expand(size, size).contiguous()
    one = torch.eye(size, dtype=dtype, device=device)
    return bool(
        (product(entries, one) == entries).all() and (product(one, entries.mT) == entries.mT).all()
    )


def _keeps_sums(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whole numbers, whose sum takes all bits of the type and no partial sum more."""
    largest = 2.0 ** (53 if dtype == torch.float64 else 24) / _TERMS
    terms = torch.full((_TERMS,), largest - 1, dtype=dtype, device=device)
    terms[::2] -= 1
    exact = _TERMS * (largest - 1) - _TERMS // 2
    ones = torch.ones(_TERMS, 8, dtype=dtype, device=device)
    sums = [
        terms[None, :] @ ones,
        terms.expand(64, _TERMS) @ ones,
        ones.mT @ terms[:, None],
        terms.sum(),
        torch.linalg.vecdot(terms[None, :], ones.mT),
    ]
    return all(bool((one == exact).all()) for one in sums)


def _keeps_windows(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Images with one huge pixel, which must not show where a window does not hold it."""
    image = torch.ones(16, 8, 14, 14, dtype=dtype, device=device)
    image[:, :, 7, 7] = _APART[dtype]
    kernel = torch.ones(8, 8, 3, 3, dtype=dtype, device=device)
    way = (1, 1), (0, 0), (1, 1), 1
    seen = convolve(image, kernel, way)
    back = transposed(image, kernel, way, (16, 16))
    return bool((seen[:, :, :5] == 72).all() and (back[:, :, 2:7, 2:14] == 72).all())
