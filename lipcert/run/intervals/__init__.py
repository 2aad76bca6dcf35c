"""Runs over networks of real outputs: what each of them gives anywhere in balls around samples.

``inputs`` has data and targets, ``batches`` a batch of samples, ``enclosing`` the whole run,
``record`` what comes of it.
"""

from lipcert.run.intervals.enclosing import enclose
from lipcert.run.intervals.inputs import dataset_of, read_inputs
from lipcert.run.intervals.record import Enclosed, IntervalResult, rows

__all__ = ["Enclosed", "IntervalResult", "dataset_of", "enclose", "read_inputs", "rows"]
