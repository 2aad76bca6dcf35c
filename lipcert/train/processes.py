"""The processes that train together: one by itself, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import UsageError


@dataclass(frozen=True)
class ProcessGroup:
    """``rank`` of ``world``; the first writes files and certifies."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> ProcessGroup:
        """As torchrun's variables say. Raises ``UsageError`` for a number that is none."""
        try:
            rank, world, local = (
                int(os.environ.get(name, default))
                for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
            )
        except ValueError as error:
            raise UsageError(f"RANK, WORLD_SIZE, LOCAL_RANK: {error}; use torchrun") from error
        return cls(rank, world, local)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, asked: str) -> str:
        """Each process on a GPU of its own where GPUs are asked for."""
        return f"cuda:{self.local_rank}" if self.world > 1 and asked == "cuda" else asked

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """The group of all processes while it lasts: gloo on CPU, NCCL on GPUs."""
        if self.world == 1:
            yield
            return
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values
