"""The recipes of CONTRIBUTING, run from outside the package, and the laws on what they define."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import smallest_margins
from laws import random_network, seeded, uniform
from report import made

from lipcert.certification import Certifier
from lipcert.options import Epsilon, Options

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")


def code(title: str) -> str:
    """All Python of one section, each block where it stands."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    assert blocks
    return "\n".join(blocks)


def defined(title: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code(title), title, "exec"), names)  # noqa: S102 — the guide's own code
    return names


def test_the_laws_hold_for_the_activation_the_operator_and_the_rung(tmp_path):
    """In a process of its own, whose lists of cases they are added to."""
    (tmp_path / "recipes.py").write_text(
        "import sys\n"
        "import laws\n"
        + code("Add an activation")
        + code("Add an affine operator")
        + code("Add a joint")
        + "laws.JOINT_CASES['squares apart'] = (SquaresApart((2, 3)), -2.0, 2.0)\n"
        + code("Add a rung")
        + "laws.RUNG_CASES['product'] = lambda analysis, published: [\n"
        "    ByProduct(published, eps.rounded_up) for eps in analysis.options.eps]\n"
        + "laws.ACTIVATION_CASES['softshrink'] = lambda dtype, generator: (\n"
        "    Softshrink(torch.tensor(0.5, dtype=dtype)))\n"
        "laws.OPERATOR_CASES['circulant'] = lambda dtype, generator: (\n"
        "    Circulant((2, 5), (2, 5), laws.normal((5,), generator, dtype),\n"
        "              laws.normal((5,), generator, dtype)))\n"
        f"sys.path.insert(0, {str(TESTS / 'network')!r})\n"
        "import test_operators\n"
        "test_operators.entrywise.register(Circulant)(by_definition)\n",
        encoding="utf-8",
    )
    files = (
        "network/test_activations.py", "network/test_anchored_activations.py",
        "network/test_joints.py", "network/test_operators.py",
        "certification/test_certification_rungs.py",
    )  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "recipes", "-p", "no:cacheprovider",
         *(str(TESTS / file) for file in files), "-k",
         "softshrink or circulant or product or squares"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS), str(ROOT)])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    (passed,) = re.findall(r"(\d+) passed", ran.stdout)
    assert int(passed) >= 40


def test_certificates_with_the_activation_hold():
    names = defined("Add an activation")
    network, pixels, labels = (names[name] for name in ("network", "pixels", "labels"))
    radii = torch.tensor([sample.radius for sample in names["samples"]], dtype=torch.float64)
    assert bool((radii >= 0.1).all())
    assert bool((smallest_margins(network, pixels, labels, radii) > 0).all())


def test_the_rung_settles_what_it_can_before_the_others():
    names = defined("Add a rung")
    network = random_network(seeded(0)).to(dtype=torch.float32).to(dtype=torch.float64)
    x = uniform((3, *network.in_shape), seeded(1)).float().double()
    labels = network.logits(x).argmax(1)
    certifier = names["certifier"](network, Options((Epsilon.parse("1e-3"),)), 3)
    assert certifier.rungs[:2] == ("product", "local")
    samples = certifier(x, labels, range(3))
    assert all("product" in sample.rungs for sample in samples)
    decided = [sample for sample in samples if sample.decided_by == "product"]
    assert decided
    assert all(sample.verdict == "certified" for sample in decided)


def test_an_operator_without_a_norm_is_refused():
    """By the norms, and so by a certifier."""
    names = defined("Add an affine operator")
    circulant = names["Circulant"]((1, 3), (1, 3), None, torch.ones(2, dtype=torch.float64))
    builder = defined("Add an activation")["NetworkBuilder"]((1, 3))
    network = builder.build(builder.operator(circulant, 0))
    with pytest.raises(TypeError, match="Circulant"):
        Certifier(network, Options((Epsilon.parse("0.1"),)), samples=1)


def test_the_report_format_renders_a_folder_of_results(tmp_path):
    names = defined("Add a report format")
    results = made.plain()
    made.save(tmp_path, results)
    lines = names["report"](tmp_path).splitlines()
    assert lines[0] == "index\tcertified radius"
    assert len(lines) == 1 + len(results.samples)
    assert names["render"](made.estimated()).startswith("index\tESTIMATE: radius\n")
