"""IEEE arithmetic for the time of an analysis, whatever this process or this build has set.

Off: TF32 and bfloat16 in place of float32, sums of 16-bit products kept in 16 bits, subnormals
flushed to zero, NNPACK's convolutions. Afterwards all is as it was. What cannot be switched is
computed and looked at: rounding to nearest, ties to even, and subnormals, in both formats that an
analysis uses; in float32, that products keep all their bits and that sums are of products alone,
which those of Winograd's and of Fourier's method are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F

from lipcert.certification.probes import check_sums
from lipcert.errors import CannotCertify

# Under torch.backends, with what they have to be.
_FLAGS = {
    "cuda.matmul.allow_tf32": False,
    "cudnn.allow_tf32": False,
    "cuda.matmul.allow_fp16_reduced_precision_reduction": False,
    "cuda.matmul.allow_bf16_reduced_precision_reduction": False,
    "cuda.matmul.allow_fp16_accumulation": False,
}
# The newer names of the same, in versions of torch that have them; an empty one is for all.
_PRECISIONS = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul",
               "mkldnn.conv", "mkldnn.rnn")  # fmt: skip
# So many numbers that every thread has some of them.
_MANY = 2**16


@contextmanager
def ieee_arithmetic() -> Iterator[None]:
    """Raises ``CannotCertify`` where this machine does not compute as it has to."""
    flags = _read(_FLAGS)
    matmul = _found(torch.get_float32_matmul_precision)
    precisions = _read(f"{name}.fp32_precision".lstrip(".") for name in _PRECISIONS)
    flushed = not _has_subnormals(torch.float64)
    ordered = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    (packed,) = torch.backends.nnpack.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        _set(_FLAGS, "highest", dict.fromkeys(precisions, "ieee"))
        torch.set_flush_denormal(False)
        # Of a CPU's kernels those that are used here are deterministic.
        if torch.cuda.is_available():
            torch.use_deterministic_algorithms(True, warn_only=True)
        _check()
        yield
    finally:
        _set(flags, matmul, precisions)
        torch.use_deterministic_algorithms(ordered, warn_only=warned)
        torch.set_flush_denormal(flushed)
        torch.backends.nnpack.set_flags(packed)  # type: ignore[no-untyped-call]


def _read(names: Iterable[str]) -> dict[str, Any]:
    """What can be read: old names cannot be where new ones have set something in between."""
    found = {name: _found(attrgetter(name), torch.backends) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _set(flags: Mapping[str, Any], matmul: str | None, precisions: Mapping[str, Any]) -> None:
    """In this order, because each one also sets some of the next."""
    for settings in (flags, precisions):
        for name, value in settings.items():
            owner, _, attribute = name.rpartition(".")
            place = attrgetter(owner)(torch.backends) if owner else torch.backends
            # What an older torch does not have need not be switched off.
            with suppress(AttributeError):
                setattr(place, attribute, value)
        if settings is flags and matmul is not None:
            torch.set_float32_matmul_precision(matmul)


def _found(read: Any, *arguments: Any) -> Any:
    """What a reader gives, None where this version of torch has no such setting or cannot say."""
    try:
        return read(*arguments)
    except (AttributeError, RuntimeError):
        return None


def _check() -> None:
    _check_rounding("cpu")
    if not _sums_products():
        raise CannotCertify(
            "float32 products lose bits here, by a fast mode of torch's libraries: unset "
            "ONEDNN_DEFAULT_FPMATH_MODE and the like, and certify in a new process"
        )


def check_device(device: torch.device | str) -> None:
    """Try out the arithmetic of a device that is no CPU, which ``ieee_arithmetic`` does not.

    Raises ``CannotCertify`` where it does not compute as it has to.
    """
    if torch.device(device).type != "cpu":
        _check_rounding(device)
        check_sums(device)


def _check_rounding(device: torch.device | str) -> None:
    for dtype in (torch.float64, torch.float32):
        unit = torch.finfo(dtype).eps / 2
        one = torch.ones(_MANY, dtype=dtype, device=device)
        above = one * (1 + 2 * unit)
        nearest = (
            ((one + unit) == 1).all()
            and ((above + unit) == 1 + 4 * unit).all()
            and ((one - unit / 2) == 1).all()
            and ((one - unit) == 1 - unit).all()
        )
        where = "here" if torch.device(device).type == "cpu" else f"on {device}"
        if not nearest:
            raise CannotCertify(
                f"{dtype} does not round to nearest {where}: certify in a new process"
            )
        if not _has_subnormals(dtype, device):
            raise CannotCertify(
                f"{dtype} loses its subnormal numbers {where}: certify in a new process, or on a "
                "machine that keeps them"
            )


def _has_subnormals(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    smallest = torch.full((_MANY,), torch.finfo(dtype).tiny, dtype=dtype, device=device)
    return bool((smallest * 0.5 > 0).all())


def _sums_products() -> bool:
    """One number of 24 bits in each row, and images with one huge pixel, which must not show
    where a window does not hold it."""
    full = torch.eye(32) * (1 + torch.arange(1, 33) * 2.0**-23)
    image = torch.ones(16, 8, 14, 14)
    image[:, :, 7, 7] = 2.0**27
    kernel = torch.ones(8, 8, 3, 3)
    seen = F.conv2d(image, kernel)
    back = F.conv_transpose2d(image, kernel)
    return bool(
        (full @ torch.eye(32) == full).all()
        and (
            F.conv2d(full[:, :, None, None], torch.eye(32)[:, :, None, None])[..., 0, 0] == full
        ).all()
        and (seen[:, :, :5] == 72).all()
        and (back[:, :, 2:7, 2:14] == 72).all()
    )
