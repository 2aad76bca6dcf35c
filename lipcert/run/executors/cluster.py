"""Batches certified by the machines of a cluster, through ray.

The driver, which is this process, keeps the journal, reads the data and sends each batch its
pixels; the certifier lies in ray's store, once for each machine. Where a machine is lost, ray gives
its batches to others; where a batch ends its process again and again, it is the batch's fault.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any

import torch

from lipcert.errors import LipcertError, UsageError
from lipcert.run.executors.face import (
    Answer,
    Certifying,
    Ended,
    Executor,
    Images,
    Load,
    answer,
    settle,
)
from lipcert.run.executors.here import Here
from lipcert.run.executors.packing import pack, unpack

_LOG = logging.getLogger(__name__)
# How often ray gives a batch to another process whose own has ended, through no fault that a batch
# is known to have.
_RETRIES = 3
# Batches for each place: one that is certified, and one that is on its way.
_AHEAD = 2


class Cluster(Executor):
    """The cluster at ``address``: ``auto`` for the one that this machine belongs to.

    A batch takes ``threads`` CPUs, or one GPU and as many CPUs where the certifier is on one.
    Raises ``UsageError`` where there is no such cluster, or none with room for a batch.
    """

    def __init__(
        self, certifier: Certifying, load: Load, address: str, *, threads: int = 1
    ) -> None:
        self._ray = _connected(address)
        self._load, self._points = load, certifier.counterexamples
        self._here = Here(certifier, load)
        self._cpus, self._gpus = threads, int(_on_gpu(certifier))
        if not self._room():
            self._ray.shutdown()
            wanted = f"{threads} CPU{'s' * (threads > 1)}" + " and a GPU" * self._gpus
            raise UsageError(f"--cluster {address}: no machine there has {wanted} for a batch")
        packed = io.BytesIO()
        pack(certifier, packed)
        self._certifier = self._ray.put(packed.getvalue())
        self._certify = self._ray.remote(_certify).options(
            num_cpus=threads, num_gpus=self._gpus, max_retries=_RETRIES,
            scheduling_strategy="SPREAD",
        )  # fmt: skip

    @property
    def places(self) -> int:
        return max(1, _AHEAD * self._room())

    def submit(self, batch: list[int]) -> Future[Answer]:
        try:
            images = self._load(batch)
        except Exception:  # here it fails again, in the way that is reported
            return self._here.submit(batch)
        future: Future[Answer] = Future()
        # In a list it is not unpacked for every batch.
        sent = self._certify.remote([self._certifier], self._cpus, images, batch)
        sent.future().add_done_callback(partial(self._heard, future))
        return future

    def __exit__(self, *exception: object) -> None:
        """What is still certified is given up."""
        self._ray.shutdown()

    def _room(self) -> int:
        """How many batches the machines that are there take at once."""
        count = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                cpus = int(has.get("CPU", 0)) // self._cpus
                count += min(cpus, int(has.get("GPU", 0))) if self._gpus else cpus
        return count

    def _heard(self, future: Future[Answer], sent: Future[Any]) -> None:
        """In a thread of ray's."""
        try:
            found: Answer | LipcertError = sent.result()
        except BaseException as error:
            ended = _ended(self._ray, error)
            _LOG.warning("a process of the cluster %s; what it had is computed again", ended.how)
            future.set_exception(ended)
        else:
            settle(future, found, self._points)


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "--cluster: ray is not installed; pip install 'lipcert[cluster]'"
        ) from error
    try:
        ray.init(
            address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(
            f"--cluster {address}: cannot be reached ({said}); start it with ray start, and give "
            "auto or its host:port"
        ) from error
    return ray


def _on_gpu(certifier: Certifying) -> bool:
    device = getattr(getattr(certifier, "budget", None), "device", "cpu")
    return torch.device(device).type == "cuda"


def _ended(ray: Any, error: BaseException) -> Ended:
    memory = isinstance(error, ray.exceptions.OutOfMemoryError)
    if memory:
        return Ended("was killed, as its machine ran out of memory", killed=True)
    first = (str(error).splitlines() or [""])[0][:120]
    return Ended(f"ended {_RETRIES + 1} times with {type(error).__name__}: {first}")


def _certify(
    certifier: Sequence[Any], threads: int, images: Images, batch: list[int]
) -> Answer | LipcertError:
    """On a machine of the cluster."""
    torch.set_num_threads(threads)
    # Those that come from ray's store cannot be written to.
    pixels, labels = (array.copy() for array in images)
    return answer(_unpacked(certifier[0]), (pixels, labels), batch)


@lru_cache(1)
def _unpacked(certifier: Any) -> Certifying:
    import ray

    # From the driver alone, over the cluster's own store.
    return unpack(io.BytesIO(ray.get(certifier)))
