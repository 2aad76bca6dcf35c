"""The run of ``lipcert finetune`` in the HTML report."""

import json
from dataclasses import replace

import pytest
from report import made

from lipcert.errors import CannotCertify
from lipcert.report import html_page
from lipcert.report.reading import read_results
from lipcert.report.training import TrainingRecord, accuracy_curve, before_and_after, section

METRICS = (
    {"epoch": 0, "loss": None, "validation_clean": 0.99, "validation_certified_estimate": 0.0},
    {"epoch": 1, "loss": 0.9, "validation_clean": 0.98, "validation_certified_estimate": 0.5},
    {"epoch": 2, "loss": 0.4, "validation_clean": 0.97, "validation_certified_estimate": 0.8},
)
AFTER = {
    "n": 3, "clean": 2 / 3, "attack_survived": 2 / 3, "certified": 1 / 3, "mean_radius": 0.81239,
}  # fmt: skip
RESULTS = {
    "eps": "0.5",
    "method": "auto",
    "before": AFTER | {"clean": 1.0, "certified": 0.0},
    "after": AFTER,
}
TRAINING = TrainingRecord(METRICS, RESULTS)


def test_the_curves_have_a_point_an_epoch():
    drawing = accuracy_curve(METRICS)
    assert drawing.count('class="line') == 2
    assert drawing.count("L") >= 4
    assert "99.00% at first, 97.00% at the end" in drawing
    assert "ESTIMATE" in drawing


def test_before_and_after_are_rounded_to_the_side_that_promises_less():
    table = before_and_after(RESULTS)
    assert "66.66 %" in table
    assert "66.67" not in table
    assert "0.8123" in table
    assert "certified accuracy at 0.5" in table
    assert "3 test images, by auto; eps in pixels [0,1]" in table
    assert before_and_after({}) == ""
    assert (
        "before"
        not in before_and_after({"eps": "0.5", "method": "auto", "after": AFTER}).split("<thead>")[
            1
        ]
    )


def test_the_page_has_the_section_where_there_was_a_run():
    with_run = html_page.render(replace(made.full(), training=TRAINING))
    assert with_run.count("<h2>Training</h2>") == 1
    assert "<h2>Training</h2>" not in html_page.render(made.full())
    assert section(TrainingRecord((), RESULTS)) == ""
    started = TrainingRecord(METRICS[:1], {})
    assert section(started).count("<figure>") == 1


def test_the_run_is_found_beside_the_certificate(tmp_path):
    made.save(tmp_path, made.plain(5))
    assert read_results(tmp_path).training is None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in METRICS))
    (tmp_path / "recipe.json").write_text(json.dumps({"results": RESULTS}))
    assert read_results(tmp_path).training == TRAINING
    for damaged in ("{", "[]\n", '{"epoch": "one"}\n'):
        (tmp_path / "metrics.jsonl").write_text(damaged)
        with pytest.raises(CannotCertify, match=r"metrics\.jsonl: is damaged"):
            read_results(tmp_path)
