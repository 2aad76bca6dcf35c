"""Every way to convolve gives what the library's own does, its gradients too."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lipcert.network.operators import convolve as ways
from lipcert.network.operators.convolve import Way, convolve, transposed

LIBRARY = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, Way]:
    """Inputs, a weight and a way that fit."""
    dims = draw(st.integers(1, 3))
    axes = st.tuples(*[st.integers(1, 2)] * dims)
    kernel = draw(st.tuples(*[st.integers(1, 3)] * dims))
    groups = draw(st.sampled_from([1, 1, 2]))
    space = draw(st.tuples(*[st.integers(5, 8)] * dims))
    pads = draw(st.tuples(*[st.integers(0, 2)] * dims))
    way = draw(axes), pads, draw(axes), groups
    inputs, outputs = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    batch = draw(st.integers(0, 5))
    v = torch.randn(batch, inputs, *space, generator=generator, dtype=dtype)
    weight = torch.randn(outputs, inputs // groups, *kernel, generator=generator, dtype=dtype)
    return v, weight, way


@given(cases(), st.booleans(), st.booleans())
def test_all_ways_agree(
    case: tuple[torch.Tensor, torch.Tensor, Way], pieces: bool, windows: bool
) -> None:
    v, weight, way = case
    close = {"rtol": 1e-4, "atol": 1e-4} if v.dtype == torch.float32 else {}
    with (
        pytest.MonkeyPatch.context() as patch,
        ways.windows_everywhere() if windows else nullcontext(),
    ):
        if pieces:
            for limit in ("_NEAR", "_MANY", "_FAR", "_LAID_OUT"):
                patch.setattr(ways, limit, 1)
        x = v.clone().requires_grad_()
        expected = LIBRARY[weight.dim() - 2](x, weight, None, *way)
        torch.testing.assert_close(convolve(v, weight, way), expected.detach(), **close)
        back = torch.randn(expected.shape, dtype=v.dtype)
        (gradient,) = torch.autograd.grad(expected, x, back)
        torch.testing.assert_close(transposed(back, weight, way, v.shape[2:]), gradient, **close)
        # The transpose is linear too: its own gradient is the convolution.
        y = back.clone().requires_grad_()
        found = transposed(y, weight, way, v.shape[2:])
        torch.testing.assert_close(found.detach(), gradient, **close)
        (forth,) = torch.autograd.grad(found, y, v)
        torch.testing.assert_close(forth, expected.detach(), **close)


@pytest.mark.parametrize("channels", [2, 5])
def test_weights_that_are_trained_have_a_gradient(channels: int) -> None:
    weight = torch.randn(4, channels, 3, 3, requires_grad=True)
    back, x = torch.randn(2, 4, 6, 6), torch.randn(2, channels, 6, 6)
    way = (1, 1), (1, 1), (1, 1), 1
    (direct,) = torch.autograd.grad((convolve(x, weight, way) * back).sum(), weight)
    (around,) = torch.autograd.grad((transposed(back, weight, way, (6, 6)) * x).sum(), weight)
    torch.testing.assert_close(direct, around, rtol=1e-4, atol=1e-4)
