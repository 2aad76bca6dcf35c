"""What becomes of --save-proofs where there are no proofs is said, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipcert.cli.main import main


class Gated(nn.Module):
    """A product of two values: no checker of proofs knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.left(x) * torch.sigmoid(self.right(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quiet", [False, True])
def test_a_network_with_joints_has_none_and_that_is_said(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net, x = Gated().eval(), torch.rand(2, 6)
    torch.onnx.export(
        net, (x,), "m.onnx", dynamo=False, opset_version=17, input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
    )  # fmt: skip
    np.savez("d.npz", images=x.numpy(), labels=net(x).argmax(1).numpy())
    Path("out").mkdir()
    asked = ["--eps", "1e-4", "--effort", "fast", "--seed", "0", "--workers", "1"]
    asked += ["--save-proofs", "--output", "out"] + ["--quiet"] * quiet
    assert main(["certify", "m.onnx", "--data", "d.npz", *asked]) == 0
    assert ("proofs: none, as the checker does not know" in capsys.readouterr().err) is not quiet
    assert not list(Path("out").glob("proofs*"))
