"""Fine-tuning on a device beside the CPU: nothing is mixed, and the weights are the CPU's."""

import pytest
import torch
from pretend import Pretend
from train.test_train_loop import training

from lipcert.network.operators.convolve import windows_everywhere


@pytest.mark.parametrize("bound", ["local", "dual"])
def test_a_training_ends_on_a_device_where_it_ends_on_the_cpu(tmp_path, bound):
    few = {"bound": bound, "limit": 320}
    with windows_everywhere():
        here = training(tmp_path / "cpu", **few).run(resume=False)
    with Pretend() as device:
        run = training(tmp_path / "device", device=device.name, **few)
        there = {name: tensor.cpu() for name, tensor in run.run(resume=False).items()}
    assert device.launches.total() > 1000
    # On a device torch's optimiser updates all weights at once, which rounds in another order, and
    # where a gradient is next to nothing Adam makes a whole step of what rounding left.
    torch.testing.assert_close(there, here, rtol=1e-2, atol=2e-3)
