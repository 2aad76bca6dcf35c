import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from lipcert.certificate import Sample
from lipcert.data import load_dataset
from lipcert.errors import CannotCertify
from lipcert.options import Epsilon, Options
from lipcert.run import Execution, ModelSource, Preprocessing, certify_dataset, open_model
from lipcert.run.batches import in_batches
from lipcert.run.executors import executor_for
from lipcert.run.memory import limited

ROOT = Path(__file__).resolve().parents[2]
DIGITS = load_dataset("digits")


def no_process():
    raise ImportError("nothing can be had from here")


@dataclass
class Fake:
    """Certifies what it is given, in the process that the samples' ``lipschitz`` names.

    Processes are killed by more than ``room`` samples, and end by themselves at ``bad`` ones; the
    whole run ends at ``wrong``. ``closed``: it reaches no other process.
    """

    room: int = 100
    bad: set[int] = field(default_factory=set)
    wrong: int | None = None
    closed: bool = False
    counterexamples: dict[int, np.ndarray] | None = None

    def __reduce__(self):
        if self.closed:
            return no_process, ()
        return Fake, (self.room, self.bad, self.wrong, False, self.counterexamples)

    def __call__(self, pixels, labels, indices):
        if len(indices) > self.room:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.bad & set(indices):
            os._exit(3)
        if self.wrong in indices:
            raise CannotCertify(f"not {self.wrong}")
        if self.counterexamples is not None:
            self.counterexamples |= {i: p.numpy() for i, p in zip(indices, pixels, strict=True)}
        assert labels.tolist() == indices
        return [Sample(i, i, i, "certified", 1.0, 1.0, os.getpid(), "local", 0.0) for i in indices]


def load(batch):
    return np.array(batch, np.float32)[:, None] / 3, np.array(batch)


def torn(batch):
    if 3 in batch:
        raise ValueError("an image is torn")
    return load(batch)


def failed(index: int, message: str) -> Sample:
    return Sample(index, 0, -1, "error", 0.0, 0.0, None, "local", 0.0, message=message)


def certified(fake: Fake, *, samples: int = 12, size: int = 4, load=load) -> list[Sample]:
    with executor_for(fake, load, workers=2, threads=1) as executor:
        parts = list(in_batches(executor, range(samples), failed, size=size))
    found = sorted((s for part in parts for s in part), key=lambda s: s.index)
    assert [s.index for s in found] == list(range(samples))
    return found


def test_batches_are_shared_and_counterexamples_come_back():
    kept = {40: np.zeros(1, np.float32)}
    found = certified(Fake(counterexamples=kept))
    assert os.getpid() not in {s.lipschitz for s in found}
    assert kept.keys() == {*range(12), 40}
    assert all(kept[i] == np.float32(i) / np.float32(3) for i in range(12))


def test_memory_that_runs_out_halves_the_batches_of_those_that_are_left():
    found = certified(Fake(room=2))
    assert {s.verdict for s in found} == {"certified"}
    assert os.getpid() not in {s.lipschitz for s in found}


def test_a_sample_that_kills_its_process_is_the_only_one_that_fails(caplog):
    found = certified(Fake(bad={5}), samples=8)
    assert [s.index for s in found if s.verdict != "certified"] == [5]
    assert "exit code 3" in found[5].message
    assert "exit code 3" in caplog.text


def test_where_there_is_room_for_none_every_sample_fails_and_the_run_goes_on():
    found = certified(Fake(room=0), samples=2, size=1)
    assert all("was killed" in s.message for s in found)


def test_what_no_process_can_be_given_is_certified_here(caplog):
    found = certified(Fake(closed=True))
    assert {s.lipschitz for s in found} == {os.getpid()}
    assert "did not start" in caplog.text


def test_an_image_that_cannot_be_read_fails_as_in_one_process():
    found = certified(Fake(), samples=8, load=torn)
    assert [s.index for s in found if s.verdict != "certified"] == [3]
    assert "an image is torn" in found[3].message


def test_an_error_of_the_whole_run_is_the_same_as_in_one_process():
    with pytest.raises(CannotCertify) as caught:
        certified(Fake(wrong=5))
    assert str(caught.value) == "not 5"
    assert "in __call__" in caught.value.__notes__[0]


@pytest.fixture(scope="module")
def model():
    return open_model(ModelSource(ROOT / "examples" / "digits.onnx"), Preprocessing())


def files(folder: Path, model, workers: int):
    # Fresh coins would move the searches of the two runs apart.
    options = Options(eps=(Epsilon.parse("0.3"), Epsilon.parse("0.7")), seed=0)
    execution = Execution(
        workers=workers, threads=1, batch_size=5, output=folder, save_counterexamples=True
    )
    result = certify_dataset(model, DIGITS, np.arange(30, 46), options, execution)
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["environment"].pop("workers") == workers
    with np.load(folder / "counterexamples.npz") as points:
        # Each is taken for another class than its own.
        assert (points["prediction"] != DIGITS.labels[points["index"]]).all()
        images = {int(i): image for i, image in zip(points["index"], points["image"], strict=True)}
    return result.samples, certificate, images


def timeless(record: dict) -> dict:
    timed = ("seconds", "rungs", "cascade", "samples_sha256", "finished")
    untimed = {k: v for k, v in record.items() if k not in timed}
    rungs = [{**rung, "seconds": 0} for rung in record.get("cascade", ())]
    return untimed | {"cascade": rungs}


def test_two_processes_give_the_certificate_of_one(model, tmp_path):
    one, two = files(tmp_path / "one", model, 1), files(tmp_path / "two", model, 2)
    assert [timeless(s.to_json()) for s in two[0]] == [timeless(s.to_json()) for s in one[0]]
    assert {"certified", "falsified"} <= {s.verdict for s in one[0]}
    assert timeless(two[1]) == timeless(one[1])
    assert one[2].keys() == two[2].keys()
    assert all(np.array_equal(two[2][i], image) for i, image in one[2].items())


UNGUARDED = """
import sys
from pathlib import Path
import numpy as np
import lipcert
from lipcert.data import load_dataset
Path(sys.argv[3]).open("a").write("ran\\n")
digits = load_dataset("digits")
result = lipcert.certify(
    lipcert.load(sys.argv[1]), digits.images[:8], digits.labels[:8], 0.1, method="local",
    workers=2, batch_size=4, output=sys.argv[2], overwrite=True,
)
print(result.summary["n"])
"""


def test_a_script_needs_no_guard_as_no_process_runs_it_again(tmp_path):
    script, output = tmp_path / "script.py", tmp_path / "run"
    script.write_text(UNGUARDED)
    ran = subprocess.run(
        [sys.executable, str(script), str(ROOT / "examples" / "digits.onnx"), str(output),
         str(tmp_path / "ran")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120,
        check=True,
    )  # fmt: skip
    assert ran.stdout == "8\n"
    assert "worker" not in ran.stderr
    assert (tmp_path / "ran").read_text() == "ran\n"
    certificate = json.loads((output / "certificate.json").read_text())
    assert certificate["environment"]["workers"] == 2
    assert len((output / "journal.jsonl").read_text().splitlines()) == 9


SLEEPERS = """
import sys, time
from pathlib import Path
import numpy as np
from lipcert.run.executors import executor_for

class Sleeper:
    counterexamples = None
    def __call__(self, pixels, labels, indices):
        Path(sys.argv[1], str(indices[0])).touch()
        time.sleep(600)

load = lambda batch: (np.zeros(1), np.zeros(1))
with executor_for(Sleeper(), load, workers=2, threads=1) as two:
    both = [two.submit([0]), two.submit([1])]
    both[0].result()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_whatever_they_are_doing(tmp_path, how):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if how == signal.SIGINT:
        # As a terminal does, to all of them.
        os.killpg(parent.pid, how)
    else:
        parent.send_signal(how)
    # Each of them holds stderr open for as long as it lives.
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == -how
    assert errors.count("Traceback") == (how == signal.SIGINT)


@dataclass
class Hungry:
    """Takes half a gibibyte for each sample."""

    counterexamples: None = None

    def __call__(self, pixels, labels, indices):
        taken = torch.empty(len(indices), 2**29, dtype=torch.uint8)
        return [Sample(i, i, i, "certified", 1.0, 1.0, len(taken), "local", 0.0) for i in indices]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux keeps such limits")
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_shrink_to_a_limit_of_memory(workers):
    """Eight samples take four gibibytes, of which a process may have three."""
    memory = 3 * 2**30
    executor = executor_for(Hungry(), load, workers=workers, threads=1, memory=memory)
    with limited(memory if workers == 1 else None), executor:
        parts = list(in_batches(executor, range(8), failed, size=8))
    assert sorted(s.index for part in parts for s in part) == list(range(8))
    assert {s.verdict for part in parts for s in part} == {"certified"}
    assert all(1 <= s.lipschitz <= 4 for part in parts for s in part)
