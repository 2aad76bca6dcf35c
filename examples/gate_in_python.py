"""Certify a model, hold it against gates and write a report, without the command line.

    python gate_in_python.py

Ends with exit code 1 where a gate fails, as ``lipcert certify`` does.
"""

import sys
from pathlib import Path

import lipcert
from lipcert.data import load_dataset
from lipcert.gate import Thresholds, evaluate, worst
from lipcert.report.formats import render
from lipcert.report.results import of_run

HERE = Path(__file__).parent


def main() -> int:
    digits = load_dataset("digits")
    model = lipcert.load(HERE / "digits.onnx")
    run = lipcert.certify(model, digits.images[:30], digits.labels[:30], eps=["0.1", "0.3"])
    results = of_run(run.certificate, run.samples)

    asked = Thresholds.parse(min_certified=["0.3=60%"], warn_certified=["0.3=99%"], min_clean="90%")
    outcomes = evaluate(asked, results.certificate, results.samples)
    for outcome in outcomes:
        print(f"{outcome.status}: {outcome.gate}: {outcome.message}")

    Path("report.html").write_text(render("html", results, outcomes), encoding="utf-8")
    return 1 if worst(outcomes) == "fail" else 0


if __name__ == "__main__":
    sys.exit(main())
