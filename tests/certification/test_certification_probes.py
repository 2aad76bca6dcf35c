"""What a device's fast modes would lose is seen, each by itself, in either type."""

import pytest
import torch
from certification.made import small_case
from pretend import Pretend
from torch.overrides import TorchFunctionMode

from lipcert.certification import Certifier
from lipcert.certification.probes import check_sums
from lipcert.errors import CannotCertify
from lipcert.network.operators import convolve as ways
from lipcert.options import Epsilon, Options

MATMUL, BMM = torch.matmul, torch.bmm
DTYPES = (torch.float64, torch.float32)


def cut(a: torch.Tensor, bits: int) -> torch.Tensor:
    """Factors kept to so many bits, as TF32 keeps 11 and bfloat16 8."""
    mantissa, exponent = torch.frexp(a)
    return torch.ldexp((mantissa * 2.0**bits).round() / 2.0**bits, exponent)


def test_a_cpu_computes_sums_of_products():
    check_sums("cpu")


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(dtype, bits) for dtype in DTYPES for bits in (8, 11, 22)] + [(DTYPES[0], 48)],
)
@pytest.mark.parametrize("name", ["matmul", "bmm"])
def test_factors_that_are_cut_are_seen(monkeypatch, dtype, bits, name):
    exact = {"matmul": MATMUL, "bmm": BMM}[name]

    def fast(a, b):
        return exact(cut(a, bits), cut(b, bits)) if a.dtype == dtype else exact(a, b)

    monkeypatch.setattr(torch, name, fast)
    with pytest.raises(CannotCertify, match=f"{dtype} on cpu: products .* cut their factors"):
        check_sums("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_that_a_row_shares_is_seen(monkeypatch, dtype):
    """float64 from narrow integers: what is far below the largest entry of a row is lost."""

    def emulated(a, b):
        if a.dtype != dtype:
            return MATMUL(a, b)
        scale = a.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        return MATMUL((a / scale * 2.0**52).round() / 2.0**52 * scale, b)

    monkeypatch.setattr(torch, "matmul", emulated)
    with pytest.raises(CannotCertify, match="small beside a large entry"):
        check_sums("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_are_split_and_rounded_are_seen(dtype):
    narrow = torch.float32 if dtype == torch.float64 else torch.bfloat16

    class Split(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            products = func.__name__ in ("matmul", "__matmul__")
            if not products or args[0].dtype != dtype or args[0].shape[-1] < 4096:
                return func(*args, **(kwargs or {}))
            pairs = zip(args[0].split(512, -1), args[1].split(512, -2), strict=True)
            return sum((x @ y).to(narrow).to(dtype) for x, y in pairs)

    with Split(), pytest.raises(CannotCertify, match="long sums are kept in fewer bits"):
        check_sums("cpu")


def test_convolutions_by_another_method_are_seen(monkeypatch):
    """By Fourier's method one huge pixel is seen everywhere."""

    def fourier(v, weight, way):
        size = v.shape[2:]
        seen = torch.fft.rfft2(v)[:, None] * torch.fft.rfft2(weight, size).conj()[None]
        return torch.fft.irfft2(seen.sum(2), size)[..., : size[0] - 2, : size[1] - 2]

    monkeypatch.setattr("lipcert.certification.probes.convolve", fourier)
    with pytest.raises(CannotCertify, match="convolutions mix"):
        check_sums("cpu")


@pytest.mark.parametrize("name", ["CUBLAS_EMULATE_DOUBLE_PRECISION"])
def test_a_switch_of_the_library_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(CannotCertify, match=f"{name} is set"):
        check_sums("cpu")
    monkeypatch.setenv(name, "0")
    check_sums("cpu")


def test_windows_are_sums_of_products_by_construction():
    with ways.windows_everywhere():
        check_sums("cpu")


def test_a_certifier_asks_its_device(monkeypatch):
    network, _, _ = small_case(0)
    options = Options((Epsilon.parse("0.1"),), method="global")
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
    with Pretend() as device, pytest.raises(CannotCertify, match="is set"):
        Certifier(network, options, samples=1, device=device.name)
