"""Runs: from a job to a certificate, in batches, with a journal."""

from lipcert.run.job import DataSource, Execution, Job, ModelSource, Preprocessing, Shard
from lipcert.run.model import Model, open_model
from lipcert.run.pipeline import certify_dataset, run_job
from lipcert.run.result import RunResult

__all__ = [
    "DataSource", "Execution", "Job", "Model", "ModelSource", "Preprocessing", "RunResult", "Shard",
    "certify_dataset", "open_model", "run_job",
]  # fmt: skip
