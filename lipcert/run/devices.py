"""Which devices a run computes on."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch

from lipcert.errors import UsageError

# Without it cuBLAS may sum in another order in every run; read where the first GPU is first used.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Devices:
    """``name``: of the device of this process, as torch has it; ``gpus``: the numbers of those that
    other processes certify on, one each, where there are several."""

    name: str
    gpus: tuple[int, ...] = ()

    @classmethod
    def of(cls, asked: str) -> Devices:
        """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``cuda:0,1``.

        ``auto`` is all GPUs there are, or the CPU. With several GPUs the first of them becomes
        torch's own. Raises ``UsageError`` for anything else, and for a GPU that is not there.
        """
        match = re.fullmatch(r"auto|cpu|cuda(?::([0-9]{1,4}(?:,[0-9]{1,4})*))?", asked.strip())
        if match is None:
            raise UsageError(
                f"--device {asked!r}: choose auto, cpu, cuda, one GPU such as cuda:1, or several "
                "such as cuda:0,1"
            )
        there = 0 if asked == "cpu" else torch.cuda.device_count()
        if asked == "cpu" or (asked == "auto" and not there):
            return cls("cpu")
        numbers = tuple(int(one) for one in match[1].split(",")) if match[1] else ()
        numbers = tuple(range(there)) if asked == "auto" else numbers or (0,)
        if len(set(numbers)) < len(numbers):
            raise UsageError(f"--device {asked}: names a GPU twice")
        if missing := [number for number in numbers if number >= there]:
            seen = f"only {there} GPU{'s' * (there > 1)}" if there else "no GPU"
            raise UsageError(
                f"--device {asked}: torch sees {seen} here, and no cuda:{missing[0]}; "
                "use --device auto"
            )
        os.environ.setdefault(*_WORKSPACE)
        torch.cuda.set_device(numbers[0])
        # In another process the only GPU that it sees is the first.
        return cls("cuda", numbers) if len(numbers) > 1 else cls(f"cuda:{numbers[0]}")


def check_device(device: str) -> str:
    """The device of this process; raises as ``Devices.of`` does."""
    return Devices.of(device).name


def gpu_alone(gpu: int | None) -> dict[str, str]:
    """The environment of a process that sees this GPU alone, of those that this one sees."""
    if gpu is None:
        return {}
    seen = [one for one in os.environ.get(_VISIBLE, "").split(",") if one.strip()]
    return {_VISIBLE: seen[gpu] if gpu < len(seen) else str(gpu)}
