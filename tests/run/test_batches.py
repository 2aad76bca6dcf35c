import threading
from concurrent.futures import Future
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.certificate import Sample
from lipcert.errors import CannotCertify, InternalError
from lipcert.run.batches import in_batches
from lipcert.run.executors import Answer, Ended, Executor, Failure, is_out_of_memory
from lipcert.run.executors.outcome import attempt


def sample(index: int) -> Sample:
    return Sample(index, 0, 0, "certified", 1.0, 1.0, 1.0, "local", 0.0)


def failed(index: int, message: str) -> Sample:
    return Sample(index, 0, -1, "error", 0.0, 0.0, None, "local", 0.0, message=message)


class Device:
    """Certifies at most ``room`` samples at once and fails on ``bad`` ones; remembers batches."""

    def __init__(self, room: int, bad: set[int] | frozenset[int] = frozenset()) -> None:
        self.room, self.bad, self.batches = room, bad, []

    def __call__(self, batch):
        self.batches.append(list(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if wrong := self.bad & set(batch):
            raise ValueError(f"sample {min(wrong)} is bad\nsecond line")
        return [sample(index) for index in batch]


@given(
    st.lists(st.integers(0, 99), unique=True, max_size=40),
    st.sets(st.integers(0, 99), max_size=4),
    st.integers(0, 40),
    st.integers(1, 64),
)
def test_every_sample_comes_out_once_in_order_and_only_bad_ones_fail(indices, bad, room, size):
    device = Device(room, bad)
    out = [s for batch in in_batches(Alone(device), indices, failed, size=size) for s in batch]
    assert [s.index for s in out] == indices
    expected = {i for i in indices if i in bad or room == 0}
    assert {s.index for s in out if s.verdict == "error"} == expected


def test_the_batch_size_halves_once_and_stays():
    device = Device(room=10)
    list(in_batches(Alone(device), range(30), failed))
    assert [len(batch) for batch in device.batches] == [20, 10, 10, 10]


class Crowd(Executor):
    """Takes up to ``places`` batches, which end one at a time, in the order that ``random`` says;
    it has ``room`` for so many samples of all of them together. Workers end at ``deadly`` samples,
    or once before they begin, at ``early`` ones."""

    def __init__(self, places, room, bad, random, deadly=frozenset(), early=frozenset()) -> None:
        self._places, self.room, self.bad, self.random = places, room, bad, random
        self.deadly, self.early = deadly, set(early)
        self.given: dict[Future, list[int]] = {}
        self.sizes: list[int] = []
        self.lock, self.ended = threading.Condition(), False
        threading.Thread(target=self.work, daemon=True).start()

    @property
    def places(self) -> int:
        return self._places

    def submit(self, batch: list[int]) -> Future:
        future = Future()
        with self.lock:
            assert len(self.given) < self._places
            self.given[future] = batch
            self.sizes.append(len(batch))
            self.lock.notify()
        return future

    def work(self) -> None:
        while not self.ended:
            with self.lock:
                if not self.lock.wait_for(lambda: self.given, timeout=0.1):
                    continue
                full = sum(map(len, self.given.values())) > self.room
                future = self.random.choice(list(self.given))
                batch = self.given.pop(future)
            outcome = [sample(index) for index in batch]
            if early := self.early & set(batch):
                self.early -= early
                future.set_exception(Ended("did not come", begun=False))
                continue
            if full:
                outcome = Failure("MemoryError", memory=True)
            elif self.deadly & set(batch):
                future.set_exception(Ended("ended with exit code 3"))
                continue
            elif self.bad & set(batch):
                outcome = Failure("ValueError", memory=False)
            future.set_result(Answer(outcome, 0.0))

    def __exit__(self, *exception) -> None:
        self.ended = True


class Alone(Executor):
    """One place, by a function of the batch."""

    def __init__(self, certify) -> None:
        self.certify = certify

    @property
    def places(self) -> int:
        return 1

    def submit(self, batch: list[int]) -> Future:
        future = Future()
        try:
            future.set_result(Answer(attempt(self.certify, batch), 0.0))
        except CannotCertify as error:
            future.set_exception(error)
        return future

    def __exit__(self, *exception) -> None:
        pass


@given(
    st.lists(st.integers(0, 99), unique=True, max_size=40),
    st.sets(st.integers(0, 99), max_size=4),
    st.integers(0, 40),
    st.sets(st.integers(0, 99), max_size=2),
    st.sets(st.integers(0, 99), max_size=4),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_side_by_side_every_sample_comes_out_once_and_a_crowd_costs_none(
    indices, bad, room, deadly, early, size, places, seed
):
    with Crowd(places, room, bad, Random(seed), deadly, early) as crowd:
        out = [s for batch in in_batches(crowd, indices, failed, size=size) for s in batch]
    assert sorted(s.index for s in out) == sorted(indices)
    expected = {i for i in indices if i in bad | deadly or room == 0}
    assert {s.index for s in out if s.verdict == "error"} == expected
    assert max(crowd.sizes, default=0) <= size
    if not bad | deadly | early and room >= places * size:
        assert crowd.sizes == [len(indices[i : i + size]) for i in range(0, len(indices), size)]


def test_a_failure_is_traced_to_its_sample_and_the_size_recovers():
    device = Device(room=8, bad={2})
    out = [s for batch in in_batches(Alone(device), range(8), failed, size=4) for s in batch]
    assert [len(batch) for batch in device.batches] == [4, 1, 1, 1, 1, 4]
    assert out[2].message is not None
    assert out[2].message.startswith("ValueError: sample 2 is bad")
    assert "second" not in out[2].message


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CannotCertify("no"), SystemExit(1)])
def test_interrupts_and_errors_of_the_whole_run_are_passed_on(error):
    def certify(batch):
        raise error

    with pytest.raises(type(error)):
        list(in_batches(Alone(certify), range(3), failed))


def test_samples_of_other_indices_are_never_accepted():
    with pytest.raises(InternalError):
        list(in_batches(Alone(lambda batch: [sample(i + 1) for i in batch]), range(3), failed))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), True),
        (RuntimeError("[enforce fail] not enough memory: you tried to allocate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cuso…`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


class Killed(Alone):
    """One place, whose worker is killed at some samples, so often."""

    def __init__(self, often: dict[int, int]) -> None:
        self.often = dict(often)

    def submit(self, batch: list[int]) -> Future:
        future = Future()
        if hit := [index for index in batch if self.often.get(index, 0)]:
            self.often[hit[0]] -= 1
            future.set_exception(Ended("was killed", killed=True))
        else:
            future.set_result(Answer([sample(index) for index in batch], 0.0))
        return future


def test_a_sample_whose_worker_is_killed_is_tried_again_before_it_fails():
    """A worker may be killed for reasons that are not the sample's."""
    killed = Killed({3: 7, 5: 99})
    out = [s for batch in in_batches(killed, range(8), failed, size=4) for s in batch]
    assert sorted(s.index for s in out) == list(range(8))
    assert [s.index for s in out if s.verdict == "error"] == [5]
    assert "was killed" in next(s.message for s in out if s.index == 5)


class Gpu(Alone):
    """A batch takes a share of the memory for each sample, and a share for the network."""

    def __init__(self, each: float, network: float = 0.02) -> None:
        self.each, self.network = each, network
        self.sizes: list[int] = []

    def submit(self, batch: list[int]) -> Future:
        self.sizes.append(len(batch))
        share = self.network + self.each * len(batch)
        outcome = [sample(index) for index in batch]
        if share > 1:
            outcome = Failure("out of memory", memory=True)
        future = Future()
        future.set_result(Answer(outcome, 0.0, share=share))
        return future


def test_on_a_gpu_batches_grow_to_what_its_memory_holds():
    gpu = Gpu(each=0.001)
    out = [s for batch in in_batches(gpu, range(3000), failed) for s in batch]
    assert [s.index for s in out] == list(range(3000))
    assert gpu.sizes[:3] == [20, 80, 320]
    assert max(gpu.sizes) == 512
    assert 0.4 < gpu.each * max(gpu.sizes) + gpu.network < 0.7
    tight = Gpu(each=0.02)
    list(in_batches(tight, range(200), failed))
    assert max(tight.sizes) <= 30
    fixed = Gpu(each=0.001)
    list(in_batches(fixed, range(100), failed, size=10))
    assert set(fixed.sizes) == {10}


def test_on_a_gpu_what_ran_out_of_memory_once_does_not_grow_again():
    gpu = Gpu(each=0.06)
    out = [s for batch in in_batches(gpu, range(40), failed) for s in batch]
    assert [s.index for s in out] == list(range(40))
    assert gpu.sizes == [20, 10, 10, 10, 10]
