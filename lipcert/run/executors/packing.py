"""A certifier on its way to another process, by value."""

from __future__ import annotations

from typing import IO, Any

import cloudpickle
import torch

from lipcert.run.executors.face import Certifying


def pack(certifier: Certifying, file: IO[bytes]) -> None:
    """Raises what pickling raises where the certifier cannot be sent."""
    torch.save(certifier, file, pickle_module=cloudpickle)


def unpack(file: IO[bytes]) -> Certifying:
    """What ``pack`` wrote, by nobody else: it may hold code. What lay on a GPU lies on the only one
    that this process sees, whatever number it had there."""
    found: Certifying = torch.load(file, map_location=_here, weights_only=False)
    return found


def _here(storage: Any, location: str) -> Any:
    where = "cuda:0" if location.startswith("cuda") else location
    return torch.serialization.default_restore_location(storage, where)  # type: ignore[no-untyped-call]
