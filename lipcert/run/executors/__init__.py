"""Who certifies batches, with one face: ``submit(batch)`` gives a future; an ended worker is an
event, ``Ended``.

``Here`` is this process, ``Processes`` are others of this machine, ``Cluster`` those of ray, on
any number of machines.
"""

from lipcert.run.executors.choose import executor_for
from lipcert.run.executors.face import Answer, Certifying, Ended, Executor, Images, Load
from lipcert.run.executors.here import Here
from lipcert.run.executors.outcome import Failure, Outcome, is_out_of_memory
from lipcert.run.executors.processes import Processes

__all__ = [
    "Answer", "Certifying", "Ended", "Executor", "Failure", "Here", "Images", "Load", "Outcome",
    "Processes", "executor_for", "is_out_of_memory",
]  # fmt: skip
