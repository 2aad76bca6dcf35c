import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lipcert
from lipcert.certificate import Sample
from lipcert.errors import InternalError, UsageError
from lipcert.machine import usable_cores
from lipcert.network import NetworkBuilder
from lipcert.options import Epsilon, Options
from lipcert.run.checks import implausible, spread
from lipcert.run.devices import Devices, gpu_alone
from lipcert.run.environment import (
    environment,
    suitable_threads,
    suitable_workers,
    threads,
    training_threads,
)
from lipcert.run.job import Execution, Shard
from lipcert.run.memory import parse_memory
from lipcert.run.result import assurance, check_estimate, failed_sample

ESTIMATE = Options(eps=(Epsilon.parse("0.1"),), norms="estimate")
BOUND = Options(eps=(Epsilon.parse("0.1"),))


@given(st.integers(1, 200), st.integers(1, 50))
def test_spread_keeps_order_size_and_both_halves(n, most):
    indices = np.arange(n) * 3
    kept = spread(indices, most)
    assert len(kept) == min(n, most)
    assert (np.diff(kept) > 0).all()
    assert set(kept) <= set(indices)
    if most > 1 and n > 1:
        assert kept[-1] >= indices[n // 2 - 1]


@pytest.mark.parametrize(
    ("predicted", "labels", "classes", "sign"),
    [
        ([0] * 20, [0, 0, *range(1, 10), *range(1, 10)], 10, "no more than guessing"),
        ([3] * 40, [3] * 9 + [1] * 31, 10, "predicted as class 3"),
        ([0, 1] * 50, [1, 0] * 50, 2, "0 of 100"),
        ([3] * 40, [3] * 39 + [1], 10, None),  # sorted by class, one class is right
        ([0, 1] * 20, [0, 0] * 20, 10, None),
        ([5] * 19, [1] * 19, 10, None),  # too few to tell
    ],
)
def test_implausible_accuracies(predicted, labels, classes, sign):
    found = implausible(np.array(predicted), np.array(labels), classes)
    assert (found is None) if sign is None else (found is not None and sign in found)


def test_shards_are_read_and_refused():
    assert Shard.parse("2/4") == Shard(2, 4)
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"):
        with pytest.raises(UsageError, match="such as 1/4"):
            Shard.parse(text)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"workers": 0}, {"threads": -1}, {"resume": True}]
)
def test_executions_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError):
        Execution(**options)


@pytest.mark.parametrize(
    "device",
    [
        "",
        "tpu",
        "cuda:x",
        "cuda:99",
        "cpu:one",
        "CUDA",
        "cuda:",
        "cuda:0,",
        "cuda:0,99",
        "cpu,cuda",
    ],
)
def test_devices_that_are_not_there_are_refused(device):
    with pytest.raises(UsageError, match="--device"):
        Devices.of(device)


def test_devices_are_what_was_asked_for(monkeypatch):
    """On a machine of three GPUs, as torch would tell of it."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert Devices.of("cpu") == Devices("cpu")
    assert chosen == []
    assert Devices.of("cuda") == Devices("cuda:0")
    assert Devices.of("cuda:2") == Devices("cuda:2")
    assert Devices.of("cuda:2,0") == Devices("cuda", (2, 0))
    assert Devices.of("auto") == Devices("cuda", (0, 1, 2))
    assert chosen == [0, 2, 2, 0]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(UsageError, match="twice"):
        Devices.of("cuda:1,1")
    with pytest.raises(UsageError, match="only 3 GPUs here, and no cuda:3"):
        Devices.of("cuda:3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Devices.of("auto") == Devices("cpu")


@pytest.mark.parametrize(("seen", "expected"), [("", "1"), ("5,7", "7"), ("GPU-a,GPU-b", "GPU-b")])
def test_a_process_sees_its_own_gpu_alone(monkeypatch, seen, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert gpu_alone(1) == {"CUDA_VISIBLE_DEVICES": expected}
    assert gpu_alone(None) == {}


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
        assert environment("cpu")["threads"] == 1
        assert environment("cpu", 3)["workers"] == 3
    assert torch.get_num_threads() == before


def test_a_process_on_a_cpu_has_one_thread_and_a_training_those_that_it_keeps_busy():
    with threads(4):
        assert suitable_threads("cpu") == 1
        assert 1 <= suitable_threads("cuda") <= 4
        assert training_threads(NetworkBuilder((1, 64)).build(0)) == 1
        assert 1 <= training_threads(NetworkBuilder((64, 32, 32)).build(0)) <= 4


def test_a_run_uses_one_thread_however_wide_its_network_is():
    weight = np.zeros((2, 4096), np.float32)
    weight[0, 0] = weight[1, 1] = 1
    pixels = np.zeros((4, 4096), np.float32)
    pixels[[0, 1], 0] = pixels[[2, 3], 1] = 1
    model = torch.nn.Sequential(torch.nn.Linear(4096, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(weight))
    with threads(2):
        result = lipcert.certify(
            lipcert.load(model, example_input=torch.zeros(1, 4096)), pixels, [0, 0, 1, 1], 0.1,
            effort="fast",
        )  # fmt: skip
    assert result.certificate.environment["threads"] == 1


def test_workers_are_as_many_as_the_work_and_the_machine_have_room_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("lipcert.run.environment.usable_cores", lambda: 4)
    fast = Options(eps=BOUND.eps, effort="fast")
    network = NetworkBuilder((64, 16, 16)).build(0)

    def count(samples, *, options=BOUND, **execution):
        return suitable_workers(network, options, Execution(workers=None, **execution), samples)

    assert (count(200), count(200, threads=2), count(200, threads=8)) == (4, 2, 1)
    assert (count(60), count(20), count(20, batch_size=5)) == (3, 1, 3)
    assert (count(60, options=fast), count(600, options=fast)) == (1, 4)
    # As large as examples/digits.onnx: a hundred samples of it are shared, two batches are not.
    network = NetworkBuilder((3092,)).build(0)
    assert (count(100), count(40)) == (3, 1)
    network = NetworkBuilder((64, 16, 16)).build(0)
    assert (count(200, shard=Shard(1, 2)), count(200, device="cuda")) == (1, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert count(200) == 1
    asked = Execution(workers=3, device="cuda")
    assert suitable_workers(network, BOUND, asked, 1) == 3


def test_a_container_has_the_cores_that_it_was_granted(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr("lipcert.machine._QUOTA", quota)
    whole = usable_cores()
    assert whole >= 1
    for text, cores in (("max 100000\n", whole), ("150000 100000\n", 1), ("50000 100000\n", 1)):
        quota.write_text(text)
        assert usable_cores() == cores


def certified(**changes) -> Sample:
    given = {"verdict": "certified", "radius": 0.2, "certified": ("0.1",), **changes}
    return Sample(
        index=0,
        label=1,
        prediction=1,
        margin=1.0,
        lipschitz=2.0,
        method="local",
        seconds=0,
        **given,
    )


def test_probabilities_add_up_and_vanish_with_exact_norms():
    spent = assurance(BOUND, 5e-10, [certified(failure_probability=1e-10)] * 3)
    assert spent.kind == "randomised"
    assert spent.failure_probability == pytest.approx(8e-10)
    assert assurance(BOUND, 0.0, [certified()]).kind == "deterministic"
    assert assurance(ESTIMATE, 0.0, []).kind == "estimate"
    with pytest.raises(InternalError):
        assurance(BOUND, 2e-9, [])


def test_an_estimate_never_passes_for_a_certificate():
    check_estimate(BOUND, [certified()])
    for wrong in (
        certified(),
        certified(verdict="unknown", certified=()),
        certified(verdict="unknown", certified=(), radius=None),
    ):
        with pytest.raises(InternalError):
            check_estimate(ESTIMATE, [wrong])
    for wrong in (certified(radius_estimate=0.3), certified(verdict="estimated")):
        with pytest.raises(InternalError):
            check_estimate(BOUND, [wrong])


@pytest.mark.parametrize("options", [BOUND, ESTIMATE])
def test_a_failed_sample_claims_nothing(options):
    sample = failed_sample(4, 2, options, "ValueError: bad")
    check_estimate(options, [sample])
    assert not sample.correct
    assert not sample.certified
    assert not sample.radius


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 2**33), ("8G", 2**33), ("1.5 g", 3 * 2**29), ("800M", 800 * 2**20), ("4096", 4096)],
)
def test_amounts_of_memory_are_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "8 apples", "-1G", "1e9", "G", "8GG"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UsageError, match="--memory-limit"):
        parse_memory(text)


def test_limits_that_hold_no_process_are_refused():
    with pytest.raises(UsageError, match=r"hold no process|only Linux"):
        Execution(memory_limit=2**20)
    with pytest.raises(UsageError, match=r"limits of its own|only Linux"):
        Execution(memory_limit=2**33, cluster="auto")
