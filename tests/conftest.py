"""Settings of every test."""

import os

import pytest
import torch
from hypothesis import settings

# The same examples in every run; new ones are what the fuzzing benchmark is for.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are slower on several threads, far slower where cores are shared."""
    torch.set_num_threads(1)
    # For the command line in subprocesses.
    os.environ["OMP_NUM_THREADS"] = "1"
