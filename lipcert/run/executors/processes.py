"""Batches certified side by side, by processes of this machine.

The layers of most networks are too small for threads: a second one gained nothing where a second
process took half the time. Each process has the certifier of this one, norms included, and what it
computes depends on its batch alone, so that the results are those of one process, bit for bit.

The processes are loky's: a pool of one for each place, for a pool of many ends with the first of
its processes that is killed, and all batches in flight with it.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from loky import ProcessPoolExecutor
from loky.backend import resource_tracker
from loky.process_executor import BrokenProcessPool

from lipcert.errors import LipcertError
from lipcert.run.devices import gpu_alone
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
from lipcert.run.memory import limit_memory

_LOG = logging.getLogger(__name__)
# Seconds after which a process notices that the one that started it has ended.
_EVERY = 0.5


class Processes(Executor):
    """``count`` processes with ``threads`` threads each. One that ends takes its batch alone.

    Killed while it certifies, it counts as out of memory and is not replaced, unless it was the
    last; ended in any other way, it is. One that could not even begin is done without; where none
    is left, this process certifies. ``gpus``: the number of the one that each process sees, none
    for a CPU. ``memory``: bytes that each may have.
    """

    def __init__(
        self, certifier: Certifying, load: Load, count: int, *, threads: int = 1,
        gpus: Sequence[int] = (), memory: int | None = None,
    ) -> None:  # fmt: skip
        self._load, self._points = load, certifier.counterexamples
        self._limits = _Limits(threads, memory)
        self._here = Here(certifier, load)
        # Once for all of them, in a file that is this user's alone.
        self._folder = tempfile.TemporaryDirectory(prefix="lipcert-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / "certifier"
        try:
            with self._path.open("wb") as file:
                pack(certifier, file)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            _LOG.warning("no other process can have the certifier (%s); certifying here", error)
            count = 0
        self._workers = [_Worker(gpus[i] if gpus else None) for i in range(count)]

    @property
    def places(self) -> int:
        self._renew()
        return max(1, len(self._workers))

    def submit(self, batch: list[int]) -> Future[Answer]:
        try:
            images = self._load(batch)
        except Exception:  # here it fails again, in the way that is reported
            return self._here.submit(batch)
        while worker := self._idle():
            worker.batch = batch
            try:
                sent = worker.send(str(self._path), self._limits, images)
            except BrokenProcessPool as error:  # it had nothing to do
                worker.ended = _ended(error, begun=True)
            except OSError as error:
                worker.ended = Ended(error.strerror or str(error), begun=False)
            else:
                future: Future[Answer] = Future()
                sent.add_done_callback(partial(self._heard, worker, future))
                return future
        return self._here.submit(batch)

    def __exit__(self, *exception: object) -> None:
        """At once, whatever they are doing: nothing of theirs is left to be put in order."""
        for worker in self._workers:
            worker.end()
        self._folder.cleanup()

    def _heard(self, worker: _Worker, future: Future[Answer], sent: Future[Any]) -> None:
        """In a thread of the pool's."""
        try:
            found = sent.result()
        except BaseException as error:
            worker.ended = _ended(error, begun=worker.begun)
            future.set_exception(worker.ended)
            return
        worker.batch = None
        settle(future, found, self._points)

    def _idle(self) -> _Worker | None:
        self._renew()
        return next((worker for worker in self._workers if worker.batch is None), None)

    def _renew(self) -> None:
        """Let those go that have ended, and start others in their places."""
        for worker in [worker for worker in self._workers if worker.ended is not None]:
            self._workers.remove(worker)
            worker.end()
            ended = worker.ended
            assert ended is not None
            if not ended.begun:
                _LOG.warning("a worker did not start (%s); going on without it", ended.how)
                continue
            _LOG.warning("a worker %s; what it had is computed again", ended.how)
            if not (ended.killed and self._workers):
                self._workers.append(_Worker(worker.gpu))


@dataclass(frozen=True)
class _Limits:
    """Of each process."""

    threads: int
    memory: int | None


class _Worker:
    """A pool of one process, and the batch that it was given."""

    def __init__(self, gpu: int | None) -> None:
        self.gpu = gpu
        self.batch: list[int] | None = None
        self.ended: Ended | None = None
        self._pool = ProcessPoolExecutor(1, timeout=None, env=gpu_alone(gpu))
        self._started: Future[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether it has the certifier."""
        started = self._started
        return started is not None and started.done() and started.exception() is None

    def send(self, path: str, limits: _Limits, images: Images) -> Future[Any]:
        assert self.batch is not None
        if self._started is None:
            with _uninterrupted():
                self._started = self._pool.submit(_begin, path, limits, os.getpid())
        sent: Future[Any] = self._pool.submit(_certify, path, images, self.batch)
        return sent

    def end(self) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)


def _ended(error: BaseException, *, begun: bool) -> Ended:
    """What the pool says of its process, as an event."""
    if not isinstance(error, BrokenProcessPool):
        return Ended(f"ended with {type(error).__name__}: {error}", begun=begun)
    # It names the signal, or EXIT, with the number of either.
    found = re.search(r"\{(\w+)\((-?[0-9]+)\)", str(error))
    killed = found is not None and found[1] == "SIGKILL"
    code = found[2] if found else "unknown"
    return Ended(
        "was killed" if killed else f"ended with exit code {code}", killed=killed, begun=begun
    )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes started here ignore Ctrl-C and SIGTERM, which whole groups of processes get, from
    their first moment on; this one answers them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It would let interrupts through again when it is started.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(path: str, limits: _Limits, parent: int) -> None:
    """The first thing that a worker does."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(limits.threads)
    limit_memory(limits.memory)
    _certifier(path)


def _certify(path: str, images: Images, batch: list[int]) -> Answer | LipcertError:
    return answer(_certifier(path), images, batch)


@lru_cache(1)
def _certifier(path: str) -> Certifying:
    # From the parent alone, which has written it where nobody else can.
    with Path(path).open("rb") as file:
        return unpack(file)


def _end_with(parent: int) -> None:
    # What has lost its parent is given another one.
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os._exit(1)
