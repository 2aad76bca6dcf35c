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
from lipcert.machine import usable_cores
from lipcert.network import Network
from lipcert.options import Options
from lipcert.run.batches import number
from lipcert.run.job import Execution

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime")
# Values that one thread computes in the time that waking another one takes; torch's own measure.
_ONE_THREAD = 32768
# What a sample takes for each value of its network, at the least: twice as much on examples/digits,
# a hundred times on deep ones; the same of --effort fast; and what starting a process takes.
_SECONDS, _SECONDS_TO_GUESS, _SECONDS_TO_START = 2e-5, 4e-6, 2.0


def environment(device: str, workers: int = 1) -> dict[str, Any]:
    """The ``environment`` of a certificate; ``threads`` are those of each of its ``workers``."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        "python": platform.python_version(),
        "lipcert": lipcert.__version__,
        **{package: metadata.version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": name,
        "threads": torch.get_num_threads(),
        "workers": workers,
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


def suitable_threads(device: str) -> int:
    """One on a CPU, where processes share the work; beside a GPU one a core.

    Threads wait for each other in loops that take a whole core: with one a core, where other
    programs were running too, certification took 7 to 15 times as long.
    """
    return 1 if device == "cpu" else min(torch.get_num_threads(), usable_cores())


def training_threads(network: Network) -> int:
    """For a training, which one process does: as many as the widest layer of a batch of 32 keeps
    busy, up to one a core."""
    cores = min(torch.get_num_threads(), usable_cores())
    widest = max(math.prod(node.shape) for node in network.nodes)
    return max(1, min(cores, 32 * widest // _ONE_THREAD))


def suitable_workers(network: Network, options: Options, execution: Execution, samples: int) -> int:
    """As many processes as there are cores for their threads, but no more than there are batches,
    and as few as have each about as much to do as it costs to start one.

    One on a GPU, and where shards or torchrun share the work already.
    """
    alone = execution.shard or execution.device != "cpu" or os.environ.get("WORLD_SIZE", "1") != "1"
    if execution.workers or alone:
        return execution.workers or 1
    seconds = least_seconds(network, options, samples)
    cores = usable_cores() // (execution.threads or 1)
    batches = number(samples, execution.batch_size)
    return max(1, min(cores, batches, int(seconds / _SECONDS_TO_START)))


def least_seconds(network: Network, options: Options, samples: int) -> float:
    """Of processor time, for so many samples, by the size of the network."""
    values = sum(math.prod(node.shape) for node in network.nodes)
    guesses = options.method == "auto" and options.effort == "fast"
    return samples * values * (_SECONDS_TO_GUESS if guesses else _SECONDS)
