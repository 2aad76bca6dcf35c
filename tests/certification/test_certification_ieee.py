"""The switches of reduced precision: off inside, and afterwards as they were."""

import pytest
import torch

from lipcert.certification.ieee import ieee_arithmetic
from lipcert.errors import CannotCertify

SUBNORMAL = 1e-310


def modes() -> tuple[object, ...]:
    matmul = torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(),
        matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
        bool(torch.full((2**16,), SUBNORMAL, dtype=torch.float64).mul(1).all()),
    )


STRICT = ("highest", False, False, False, False, False, True)


@pytest.fixture
def loose():
    """Everything as fast and as wrong as it can be set."""
    before = modes()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    torch.set_flush_denormal(True)
    yield modes()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[2]
    torch.backends.cuda.matmul.allow_fp16_accumulation = before[5]
    torch.set_flush_denormal(False)


def test_all_is_off_inside_and_restored(loose) -> None:
    assert loose != STRICT
    with ieee_arithmetic():
        assert modes() == STRICT
        with ieee_arithmetic():
            assert modes() == STRICT
        assert modes() == STRICT
    assert modes() == loose


def test_restored_after_an_error_and_as_a_decorator(loose) -> None:
    @ieee_arithmetic()
    def fails() -> None:
        assert modes() == STRICT
        raise ValueError("told to")

    for _ in range(2):
        with pytest.raises(ValueError, match="told"):
            fails()
        assert modes() == loose


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="an older torch")
def test_settings_by_their_new_names(loose) -> None:
    """Set by operator, where the old names can no longer be read."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError):
            _ = torch.backends.cudnn.allow_tf32
        with ieee_arithmetic():
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert conv.fp32_precision == torch.backends.cudnn.rnn.fp32_precision == "ieee"
        assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before


def test_a_machine_that_flushes_or_rounds_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flush = torch.set_flush_denormal
    assert flush(True)
    try:
        # As on a machine that cannot keep them.
        monkeypatch.setattr(torch, "set_flush_denormal", lambda mode: False)
        with pytest.raises(CannotCertify, match="subnormal"), ieee_arithmetic():
            pass
    finally:
        flush(False)
    # As if 1 + u were rounded up.
    monkeypatch.setattr(
        torch, "ones", lambda size, dtype, device="cpu": torch.full((size,), 1.5, dtype=dtype)
    )
    with pytest.raises(CannotCertify, match="nearest"), ieee_arithmetic():
        pass
