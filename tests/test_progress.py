"""Every watch shows one line on a terminal while it lasts, and nothing elsewhere."""

import pytest
from rich.console import Console

from lipcert.audit.progress import ConsoleWatch as AuditWatch
from lipcert.audit.report import Audited, Finding
from lipcert.progress import ProgressLine
from lipcert.run.progress import ConsoleWatch as CertifyWatch
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
        (CertifyWatch, certifying, ("samples", "0/4", "0 certified")),
        (AuditWatch, auditing, ("samples", "1/4", "1 confirmed, 0 contradicted")),
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
