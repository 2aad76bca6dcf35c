"""A ray cluster of two machines on this one; it needs ``pip install 'lipcert[cluster]'``."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from run.test_executors import DIGITS, ROOT, timeless

from lipcert.errors import UsageError
from lipcert.options import Epsilon, Options
from lipcert.run import Execution, ModelSource, Preprocessing, certify_dataset, open_model

OPTIONS = Options(eps=(Epsilon.parse("0.3"),), effort="fast", seed=0)


def without_ray() -> bool:
    try:
        import ray  # noqa: F401
    except ImportError:
        return True
    return False


def simulated_cluster():
    """Of one machine, which is tried again where the machine is so busy that ray gives it up: it
    waits half a minute for a process to answer, and starts workers at the lowest priority."""
    from ray.cluster_utils import Cluster

    left = 3
    while True:
        try:
            return Cluster(
                initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
            )
        except Exception as error:
            left -= 1
            if not left or "timed out during startup" not in str(error):
                raise


def certified(folder: Path, **more):
    model = open_model(ModelSource(ROOT / "examples" / "digits.onnx"), Preprocessing())
    execution = Execution(threads=1, batch_size=2, output=folder, **more)
    result = certify_dataset(model, DIGITS, np.arange(40), OPTIONS, execution)
    certificate = json.loads((folder / "certificate.json").read_text())
    return [timeless(sample.to_json()) for sample in result.samples], timeless(certificate)


@pytest.mark.skipif(not without_ray(), reason="ray is installed")
def test_without_ray_it_is_said_how_to_install_it(tmp_path):
    with pytest.raises(UsageError, match=r"pip install 'lipcert\[cluster\]'"):
        certified(tmp_path / "run", cluster="auto")


def test_a_cluster_has_processes_of_its_own():
    with pytest.raises(UsageError, match="exclude each other"):
        Execution(cluster="auto", workers=2)


@pytest.mark.skipif(without_ray(), reason="ray is not installed")
def test_a_machine_that_is_lost_costs_no_sample_and_changes_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    alone = certified(tmp_path / "alone")
    simulated = simulated_cluster()
    other = simulated.add_node(num_cpus=1)
    journal, killed = tmp_path / "run" / "journal.jsonl", []

    def kill() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
            time.sleep(0.02)
        killed.append(journal.read_bytes().count(b"\n") - 1)
        simulated.remove_node(other, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        found = certified(tmp_path / "run", cluster=simulated.address)
    finally:
        simulated.shutdown()
    assert killed
    assert 0 < killed[0] < 40
    assert found == alone


@pytest.mark.skipif(without_ray(), reason="ray is not installed")
def test_a_cluster_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"--cluster 127\.0\.0\.1:1: cannot be reached"):
        certified(tmp_path / "run", cluster="127.0.0.1:1")
