"""What a run ran on: versions, device, threads; no names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

from lipcert.machine import usable_cores
from lipcert.network import Network
from lipcert.options import Options
from lipcert.run.batches import number, usual
from lipcert.run.cost import least_seconds
from lipcert.run.job import Execution
from lipcert.run.memory import LEAST
from lipcert.version import VERSION

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime")
# Values that one thread computes in the time that waking another one takes; torch's own measure.
_ONE_THREAD = 32768
# What starting a process takes.
_SECONDS_TO_START = 2.0


def environment(device: str, workers: int = 1, gpus: int = 1) -> dict[str, Any]:
    """The ``environment`` of a certificate; ``threads`` are those of each of its ``workers``."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    name = f"{gpus} × {name}" if gpus > 1 else name
    return {
        "python": platform.python_version(),
        "lipcert": VERSION,
        **{package: metadata.version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": name,
        "threads": torch.get_num_threads(),
        "workers": workers,
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suitable_threads(device: str, processes: int = 1) -> int:
    """One on a CPU, where processes share the work; beside GPUs one a core, over all
    ``processes``.

    Threads wait for each other in loops that take a whole core: with one a core, where other
    programs were running too, certification took 7 to 15 times as long.
    """
    cores = min(torch.get_num_threads(), usable_cores())
    return 1 if device == "cpu" else max(1, cores // processes)


def training_threads(network: Network) -> int:
    """For a training, which one process does: as many as the widest layer of a batch of 32 keeps
    busy, up to one a core."""
    cores = min(torch.get_num_threads(), usable_cores())
    return max(1, min(cores, 32 * network.largest // _ONE_THREAD))


def suitable_workers(network: Network, options: Options, execution: Execution, samples: int) -> int:
    """As many processes as there are cores for their threads, but no more than there are batches,
    and as few as have each about as much to do as it costs to start one.

    One on a GPU, and where shards, a cluster or torchrun share the work already.
    """
    shared = execution.shard or execution.cluster or os.environ.get("WORLD_SIZE", "1") != "1"
    alone = shared or execution.device != "cpu"
    if execution.workers or alone:
        return execution.workers or 1
    seconds = least_seconds(network, options, samples)
    cores = usable_cores() // (execution.threads or 1)
    if execution.memory_limit is not None:
        cores = min(cores, execution.memory_limit // LEAST)
    batches = number(samples, execution.batch_size or usual(options, network))
    return max(1, min(cores, batches, int(seconds / _SECONDS_TO_START)))
