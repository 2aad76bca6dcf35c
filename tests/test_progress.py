"""Every watch shows one line on a terminal while it lasts, and a line now and then elsewhere."""

import time

import pytest
from rich.console import Console

from lipcert.audit.progress import ConsoleAuditWatch
from lipcert.audit.report import Audited, Finding
from lipcert.progress import ProgressLine
from lipcert.run.progress import ConsoleWatch
from lipcert.train.watch import ConsoleTrainingWatch

FIGURES = {
    "loss": 1.5, "clean": 0.5, "certified_estimate": 0.25, "eps": 0.3, "images_per_second": 7.0,
}  # fmt: skip


def certifying(watch):
    watch.start(4, [], estimate=False)
    watch.advance([])


def auditing(watch):
    watch.start(4)
    watch.advance(Audited(0, "certified", 0.2, (Finding("certified", "confirmed", "a dual"),)))


def training(watch):
    watch.start(4, 2)
    watch.step(FIGURES)


def seen(make, use, *, terminal):
    console = Console(force_terminal=terminal, record=True, stderr=True, width=160)
    with make(console) as watch:
        use(watch)
    return console.export_text()


@pytest.mark.parametrize(
    ("make", "use", "line"),
    [
        (ConsoleWatch, certifying, ("samples", "0/4", "0 certified")),
        (ConsoleAuditWatch, auditing, ("samples", "1/4", "1 confirmed, 0 contradicted")),
        (
            ConsoleTrainingWatch,
            training,
            ("steps", "3/4", "loss 1.5 clean", "7 images/s"),
        ),
    ],
)
def test_a_terminal_sees_a_line_and_a_pipe_sees_none(make, use, line):
    on_terminal = seen(make, use, terminal=True)
    assert all(part in on_terminal for part in line)
    assert seen(make, use, terminal=False) == ""


def test_a_line_that_is_not_wanted_is_not_shown():
    console = Console(force_terminal=True, record=True, stderr=True)
    line = ProgressLine(console, "steps", shown=False)
    line.start(2)
    line.advance(1, "figures")
    line.stop()
    assert console.export_text() == ""


@pytest.mark.parametrize("make", [ConsoleWatch, ConsoleAuditWatch, ConsoleTrainingWatch])
def test_every_stage_is_a_line_where_there_is_no_terminal(make):
    console = Console(force_terminal=False, record=True, stderr=True, width=40)
    with make(console) as watch:
        watch.stage("reading the data: a path that is longer than the console is wide")
        watch.stage("reading the model: [bold]model.onnx[/]")
    lines = console.export_text().splitlines()
    assert lines == [
        "reading the data: a path that is longer than the console is wide",
        "reading the model: [bold]model.onnx[/]",
    ]


def test_a_stage_that_lasts_says_again_how_far_it_is_until_it_ends():
    console = Console(force_terminal=False, record=True, stderr=True)
    line = ProgressLine(console, "samples", every=0.05)

    def waited(sign):
        deadline = time.monotonic() + 20
        while sign not in (text := console.export_text(clear=False)):
            assert time.monotonic() < deadline, text
            time.sleep(0.01)

    line.stage("reading the model: large.onnx")
    waited("reading the model: large.onnx: 0 s so far")
    line.start(10, 2, "1 certified")
    line.advance(3, "4 certified")
    waited("5 of 10 samples after 0 s, 4 certified")
    line.stop()
    time.sleep(0.1)
    before = console.export_text(clear=False)
    time.sleep(0.2)
    assert console.export_text(clear=False) == before


def test_a_quiet_line_says_nothing_without_a_terminal():
    console = Console(force_terminal=False, record=True, stderr=True)
    line = ProgressLine(console, "samples", shown=False, every=0.01)
    line.stage("reading")
    line.start(2)
    time.sleep(0.05)
    line.stop()
    assert console.export_text() == ""
