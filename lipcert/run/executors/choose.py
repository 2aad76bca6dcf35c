"""Which executor a run has."""

from __future__ import annotations

from collections.abc import Sequence

from lipcert.run.executors.face import Certifying, Executor, Load
from lipcert.run.executors.here import Here
from lipcert.run.executors.processes import Processes


def executor_for(
    certifier: Certifying, load: Load, *, workers: int, threads: int, gpus: Sequence[int] = (),
    cluster: str | None = None, memory: int | None = None,
) -> Executor:  # fmt: skip
    """That of a ``cluster``, where one is named; else ``workers`` processes of this machine, or
    this one alone. ``load``: the pixels and labels of a batch; ``gpus``: one for each process;
    ``memory``: bytes that each process may have.

    Raises ``UsageError`` where there is no such cluster, or ray is not installed.
    """
    if cluster is not None:
        from lipcert.run.executors.cluster import Cluster

        return Cluster(certifier, load, cluster, threads=threads)
    if workers == 1:
        return Here(certifier, load)
    return Processes(certifier, load, workers, threads=threads, gpus=gpus, memory=memory)
