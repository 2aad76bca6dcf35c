"""JUnit XML: one test case a gate, as CI servers read it."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from lipcert.errors import UsageError
from lipcert.gate import Outcome
from lipcert.report.results import Results


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """A suite with a case a gate: a failed one has a ``failure``, a warning goes to ``system-out``.

    Raises ``UsageError`` where no gate was asked for.
    """
    if not outcomes:
        raise UsageError("--format junit: one case a gate; give gates such as --min-certified 0.60")
    failed = sum(outcome.status == "fail" for outcome in outcomes)
    counts = {"tests": str(len(outcomes)), "failures": str(failed), "errors": "0"}
    counts["time"] = f"{results.certificate['seconds']:.3f}"
    suites = ElementTree.Element("testsuites", {"name": "lipcert"} | counts)
    suite = ElementTree.SubElement(
        suites, "testsuite", {"name": _legal(results.title), "skipped": "0"} | counts
    )
    if names := results.certificate["data"].get("class_names"):
        properties = ElementTree.SubElement(suite, "properties")
        classes = {"name": "classes", "value": _legal(", ".join(names))}
        ElementTree.SubElement(properties, "property", classes)
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname="lipcert.gate", name=_legal(outcome.gate), time="0.000"
        )
        if outcome.status == "fail":
            failure = ElementTree.SubElement(
                case, "failure", message=_legal(outcome.message), type="gate"
            )
            failure.text = _legal(f"{outcome.gate}: {outcome.message}")
        else:
            word = "warning: " if outcome.status == "warn" else ""
            ElementTree.SubElement(case, "system-out").text = _legal(word + outcome.message)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _legal(text: str) -> str:
    """Without the control characters that no XML may hold, not even escaped."""
    return "".join(letter if letter >= " " or letter in "\t\n" else "�" for letter in text)
