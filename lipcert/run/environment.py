"""What a run ran on: versions, device, threads; no names of hosts, users or folders."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

import lipcert
from lipcert.errors import UsageError
from lipcert.network import Network

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime")
# Values that one thread computes in the time that waking another one takes; torch's own measure.
_ONE_THREAD = 32768


def environment(device: str) -> dict[str, Any]:
    """The ``environment`` of a certificate."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        "python": platform.python_version(),
        "lipcert": lipcert.__version__,
        **{package: metadata.version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": name,
        "threads": torch.get_num_threads(),
    }


def check_device(device: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:1``, as it is. Raises ``UsageError`` where it is not there."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"--device {device!r}: choose cpu, cuda or cuda:0, cuda:1, …")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: torch sees no such GPU here; use --device cpu")
    return device


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suitable_threads(network: Network) -> int:
    """As many as the widest layer of a batch of 32 keeps busy, up to one a core.

    Threads that have too little to do wait for each other in loops: a network of a few neurons
    was ten times slower with one a core, where other programs were running.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(torch.get_num_threads(), usable or 1)
    widest = max(math.prod(node.shape) for node in network.nodes)
    return max(1, min(cores, 32 * widest // _ONE_THREAD))
