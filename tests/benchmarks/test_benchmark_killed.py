"""Workers killed again and again, and the whole run with them: nothing is lost but what was in
flight, and every number is that of a run that nobody disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("LIPCERT_TEST_KILLS", "50"))
SAMPLES, BATCH, WORKERS = int(os.environ.get("LIPCERT_TEST_SAMPLES", "120")), 2, 2
RUN = (
    "certify", str(ROOT / "examples" / "digits.onnx"), "--data", "digits", "--eps", "0.3",
    "--method", "local", "--seed", "7", "--limit", str(SAMPLES), "--batch-size", str(BATCH),
    "--quiet",
)  # fmt: skip


def start(output: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lipcert", *RUN, "--output", str(output), *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def samples(output: Path) -> list[dict]:
    lines = (output / "samples.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "rungs")}
        for line in lines
    ]


def finished(output: Path) -> int:
    journal = output / "journal.jsonl"
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that certify for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == process.pid and b"popen_loky" in command:
            found.append(int(path.parent.name))
    return found


def assert_same(found: list[dict], expected: list[dict]) -> None:
    """But for the last digits: where a worker was killed batches halve, and sums come in another
    order."""
    assert [sample["index"] for sample in found] == [sample["index"] for sample in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one["verdict"], one["prediction"]) == (other["verdict"], other["prediction"])
        assert one["margin"] == pytest.approx(other["margin"], rel=1e-9)
        assert one["radius"] == pytest.approx(other["radius"], rel=1e-2, abs=1e-6)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(output, "--workers", "1")
    assert process.wait(1800) == 0, process.stderr.read()
    return samples(output)


@pytest.mark.benchmark
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_workers_that_are_killed_cost_their_batches_alone(tmp_path, undisturbed):
    """One that ended otherwise than by the system's hand for want of memory is replaced: SIGKILL
    counts as such, so that the last one is replaced again and again."""
    choose, killed, runs = random.Random(0), 0, 0
    while killed < KILLS:
        output = tmp_path / f"run-{runs}"
        process = start(output, "--workers", str(WORKERS))
        runs += 1
        known = 0
        while process.poll() is None and killed < KILLS:
            time.sleep(choose.uniform(0.02, 0.2))
            # At any time in a batch, but not before there is one.
            if finished(output) > known and (there := workers_of(process)):
                os.kill(choose.choice(there), signal.SIGKILL)
                killed, known = killed + 1, finished(output)
                print(f"{killed} killed, {known} done", end="; ", flush=True)
        assert process.wait(1800) == 0, process.stderr.read()
        assert_same(samples(output), undisturbed)
        # Every sample is in the journal once: what was finished was never computed again.
        assert finished(output) == SAMPLES
    print(f"\n{killed} workers killed in {runs} runs of {SAMPLES} samples: no sample was lost")


@pytest.mark.benchmark
def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, undisturbed):
    choose, output, kept = random.Random(1), tmp_path / "run", []
    process = start(output, "--workers", str(WORKERS))
    while process.poll() is None:
        goal = finished(output) + choose.randint(1, 20)
        while process.poll() is None and finished(output) < goal:
            time.sleep(0.05)
        if process.poll() is not None:
            break
        process.kill()
        process.wait(60)
        kept.append(finished(output))
        process = start(output, "--workers", str(WORKERS), "--resume")
    assert process.wait(60) == 0, process.stderr.read()
    assert kept == sorted(kept)
    assert_same(samples(output), undisturbed)
    assert finished(output) == SAMPLES
    print(f"\nkilled {len(kept)} times, with {kept} of {SAMPLES} samples done")
