"""Batches certified side by side, by processes.

The layers of most networks are too small for threads: a second one gained nothing where a second
process took half the time. Each process has the certifier of this one, norms included, and what it
computes depends on its batch alone, so that the results are those of one process, bit for bit.

Processes are spawned: forked ones would share locks with threads that they do not have. They import
the main module of this one, so a script that asks for them needs ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import current_process, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.certificate import Sample
from lipcert.errors import LipcertError, UsageError
from lipcert.run.batches import Alone, Crew, Done, Failure, Outcome, attempt

Images = tuple[NDArray[Any], NDArray[Any]]
Load = Callable[[list[int]], Images]
Answer = tuple[Outcome | LipcertError, float, dict[int, NDArray[Any]]]

_LOG = logging.getLogger(__name__)
_SPAWN = get_context("spawn")
# By which systems get memory back.
_KILLED = -9
# Seconds in which a process whose end of the link is closed has ended too.
_GRACE = 10.0


class Certifier(Protocol):
    """What is asked of a certifier here; it can be pickled."""

    counterexamples: dict[int, NDArray[Any]] | None

    def __call__(self, pixels: Tensor, labels: Tensor, indices: Sequence[int]) -> list[Sample]: ...


def check_main() -> None:
    """Raises ``UsageError`` in a process that has yet to import the main module of the one that
    started it: what that module does as a script would be done twice, results overwritten."""
    if getattr(current_process(), "_inheriting", False):
        raise UsageError(
            "a script that certifies with several processes is imported by each of them: put what "
            'it does under `if __name__ == "__main__":`'
        )


@contextmanager
def crew(certifier: Certifier, load: Load, *, workers: int, threads: int) -> Iterator[Crew]:
    """This process, or ``workers`` others with ``threads`` threads each while the context lasts.

    ``load``: the pixels and labels of a batch.
    """
    if workers == 1:
        yield Alone(lambda batch: _certified(certifier, *load(batch), batch))
        return
    others = Workers(certifier, load, workers, threads)
    try:
        yield others
    finally:
        others.end()


class Workers:
    """``count`` processes. One that dies takes no more than its batch with it.

    Killed while it certifies, it counts as out of memory and is not replaced, unless it was the
    last; ended in any other way, the batch failed. What was given to one that could not even begin
    is certified here.
    """

    def __init__(self, certifier: Certifier, load: Load, count: int, threads: int) -> None:
        # By value: between processes torch would share a file descriptor for each tensor.
        self._certifier = pickle.dumps(certifier)
        self._points = certifier.counterexamples
        self._load, self._threads = load, threads
        self._here = Alone(lambda batch: _certified(certifier, *load(batch), batch))
        self._workers: list[_Worker] = []
        for _ in range(count):
            self._start()

    @property
    def free(self) -> bool:
        idle = any(worker.batch is None for worker in self._workers)
        return self._here.free and (idle or not self._workers)

    @property
    def busy(self) -> bool:
        return self._here.busy or any(worker.batch is not None for worker in self._workers)

    def give(self, batch: list[int]) -> None:
        worker = next((worker for worker in self._workers if worker.batch is None), None)
        try:
            images = self._load(batch)
        except Exception:
            worker = None  # here it fails again, in the way that is reported
        if worker is None:
            self._here.give(batch)
            return
        worker.batch, worker.images, worker.since = batch, images, time.perf_counter()
        if worker.ready:
            self._send(worker)

    def take(self) -> Done:
        while not self._here.busy:
            waiting = {worker.link: worker for worker in self._workers if worker.batch is not None}
            link = wait(list(waiting))[0]
            assert isinstance(link, Connection)
            if (done := self._heard(waiting[link])) is not None:
                return done
        return self._here.take()

    def end(self) -> None:
        """At once, whatever they are doing: nothing of theirs is left to be put in order."""
        for worker in self._workers:
            worker.end()

    def _start(self) -> None:
        try:
            self._workers.append(_Worker(self._threads))
        except OSError as error:
            _LOG.warning("a worker did not start (%s); going on without it", error.strerror)

    def _heard(self, worker: _Worker) -> Done | None:
        """What a worker sent; None where that was no batch."""
        assert worker.batch is not None
        try:
            answer: Answer | None = worker.link.recv()
        except (EOFError, OSError):
            return self._lost(worker, worker.batch)
        if answer is None:
            self._welcome(worker)
            return None
        outcome, seconds, points = answer
        if isinstance(outcome, LipcertError):
            raise outcome
        if self._points is not None:
            self._points.update(points)
        batch, worker.batch = worker.batch, None
        return Done(batch, outcome, seconds, crowded=self.busy)

    def _welcome(self, worker: _Worker) -> None:
        """It has started, or has the certifier: each is sent only what it waits for, so that this
        process waits for none."""
        if worker.met:
            worker.ready = True
            self._send(worker)
            return
        worker.met = True
        with suppress(OSError):  # noticed by whoever waits for the answer
            worker.link.send_bytes(self._certifier)

    def _send(self, worker: _Worker) -> None:
        with suppress(OSError):  # as above
            worker.link.send((worker.images, worker.batch))

    def _lost(self, worker: _Worker, batch: list[int]) -> Done | None:
        # It may still be about to say why it ends.
        worker.process.join(_GRACE)
        worker.end()
        self._workers.remove(worker)
        code, seconds = worker.process.exitcode, time.perf_counter() - worker.since
        if not worker.ready:
            _LOG.warning("a worker did not start (exit code %s); going on without it", code)
            self._here.give(batch)
            return None
        killed = code == _KILLED
        if not (killed and self._workers):
            self._start()
        how = "was killed" if killed else f"ended with exit code {code}"
        _LOG.warning("a worker %s; what it had is computed again", how)
        return Done(batch, Failure(f"its process {how}", killed), seconds, crowded=self.busy)


class _Worker:
    """A process, its end of the link, and the batch it was given, with its pixels and labels."""

    def __init__(self, threads: int) -> None:
        self.link, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, threads), daemon=True)
        self.batch: list[int] | None = None
        self.images: Images | None = None
        self.since = 0.0
        self.met = self.ready = False
        with _uninterrupted():
            self.process.start()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.link.close()


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


def _serve(link: Connection[Any, Any], threads: int) -> None:
    """The life of a worker: it gets the certifier, then batches, and ends with its parent."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    link.send(None)
    # From the parent alone, which has the only other end.
    certifier: Certifier = pickle.loads(link.recv_bytes())  # noqa: S301
    link.send(None)
    while True:
        try:
            (pixels, labels), batch = link.recv()
        except EOFError:
            return
        link.send(_answer(certifier, pixels, labels, batch))


def _answer(
    certifier: Certifier, pixels: NDArray[Any], labels: NDArray[Any], batch: list[int]
) -> Answer:
    if certifier.counterexamples is not None:
        certifier.counterexamples.clear()
    began = time.perf_counter()
    outcome: Outcome | LipcertError
    try:
        outcome = attempt(lambda batch: _certified(certifier, pixels, labels, batch), batch)
    except LipcertError as error:
        error.add_note(traceback.format_exc())
        outcome = error
    return outcome, time.perf_counter() - began, certifier.counterexamples or {}


def _certified(
    certifier: Certifier, pixels: NDArray[Any], labels: NDArray[Any], batch: list[int]
) -> list[Sample]:
    return certifier(torch.from_numpy(pixels), torch.from_numpy(labels), batch)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
