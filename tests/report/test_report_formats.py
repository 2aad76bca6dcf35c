import csv
import io
import json
import re
from typing import get_args
from xml.etree import ElementTree

import pytest
import yaml
from report import made

from lipcert.errors import CannotCertify, UsageError
from lipcert.gate import Outcome, Thresholds, compare, evaluate
from lipcert.report import comparison, markdown
from lipcert.report.formats import MODULES, Format, render
from lipcert.report.numbers import percent, percent_up

GATES = [
    Outcome("clean accuracy", "pass", "95/100 = 95.00 % ≥ 90 %"),
    Outcome("seconds per sample", "warn", "0.125 s > 0.1 s"),
    Outcome("certified accuracy at eps 0.3", "fail", "598/1000 = 59.80 % < 60 %"),
]


def test_the_table_of_formats_is_complete():
    assert set(MODULES) == set(get_args(Format))


@pytest.mark.parametrize("format", ["html", "markdown", "badge", "csv"])
def test_an_estimate_says_so_and_is_never_called_certified(format):
    text = render(format, made.estimated())
    assert "ESTIMATE" in text
    # The style sheet and names of files are no claims.
    said = re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    assert "certified" not in said.lower()


@pytest.mark.parametrize("format", ["model-card", "attestation"])
def test_an_estimate_is_not_published(format):
    with pytest.raises(CannotCertify, match=r"ESTIMATE.*--norms deterministic"):
        render(format, made.estimated(), GATES)


@pytest.mark.parametrize("format", ["junit", "attestation"])
def test_what_states_gates_needs_some(format):
    with pytest.raises(UsageError, match=r"--min-certified 0\.60"):
        render(format, made.plain())


@pytest.mark.parametrize("format", get_args(Format))
@pytest.mark.parametrize("results", [made.full(60), made.plain(1)], ids=["full", "plain"])
def test_a_report_is_a_pure_function(format, results):
    before = json.dumps([results.certificate, results.samples])
    assert render(format, results, GATES) == render(format, results, GATES)
    assert json.dumps([results.certificate, results.samples]) == before


def check_junit(text: str) -> ElementTree.Element:
    """The rules that the commonly used schemas of JUnit's XML share."""
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    for suite in root:
        assert suite.tag == "testsuite"
        cases = suite.findall("testcase")
        assert suite.get("name")
        assert int(suite.get("tests")) == len(cases)
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("errors")) == len(suite.findall("testcase/error"))
        assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))
        assert re.fullmatch(r"\d+(\.\d+)?", suite.get("time"))
        order = [["properties", "testcase", "system-out", "system-err"].index(e.tag) for e in suite]
        assert order == sorted(order)
        for case in cases:
            assert set(case.attrib) <= {"name", "classname", "time", "file", "line", "assertions"}
            assert case.get("name")
            assert case.get("classname")
            assert re.fullmatch(r"\d+(\.\d+)?", case.get("time"))
            allowed = ["skipped", "error", "failure", "system-out", "system-err"]
            tags = [allowed.index(element.tag) for element in case]
            assert tags == sorted(tags)
            assert sum(tag < 3 for tag in tags) <= 1
            for failure in case.findall("failure"):
                assert failure.get("message")
                assert failure.get("type")
    for name in ("tests", "failures", "errors"):
        assert int(root.get(name)) == sum(int(suite.get(name)) for suite in root)
    return root


def test_junit_has_a_case_a_gate():
    root = check_junit(render("junit", made.plain(), GATES))
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert list(cases) == [outcome.gate for outcome in GATES]
    failure = cases["certified accuracy at eps 0.3"].find("failure")
    assert failure.get("message") == "598/1000 = 59.80 % < 60 %"
    assert cases["seconds per sample"].find("system-out").text.startswith("warning: ")
    assert root.get("failures") == "1"


def test_the_rules_of_junit_refuse_what_breaks_them():
    good = render("junit", made.plain(), GATES)
    for change in (('failures="1"', 'failures="2"'), ('classname="lipcert.gate" ', "")):
        with pytest.raises(AssertionError):
            check_junit(good.replace(*change))


def test_names_of_classes_are_in_junit_and_in_the_model_card():
    results = made.plain()
    results.certificate["data"]["class_names"] = names = ['a "cat"', "dog: <b>", "bird\x00"]
    root = check_junit(render("junit", results, GATES))
    (told,) = root.iter("property")
    assert told.attrib == {"name": "classes", "value": 'a "cat", dog: <b>, bird�'}
    (model,) = yaml.safe_load(render("model-card", results).split("---\n")[1])["model-index"]
    assert model["results"][0]["dataset"]["args"]["classes"] == names
    assert not [*check_junit(render("junit", made.plain(), GATES)).iter("property")]


def test_junit_is_well_formed_whatever_names_hold():
    results = made.plain()
    results.certificate["model"]["name"] = 'a<b>&"\x00\x1b.onnx'
    root = check_junit(render("junit", results, [Outcome("g\x07", "fail", "<&>\x0b")]))
    assert root[0].get("name").startswith('a<b>&"')


def test_the_badge_is_what_shields_reads():
    badge = json.loads(render("badge", made.plain(), GATES))
    assert badge["schemaVersion"] == 1
    assert badge["label"] == "certified accuracy, L2 0.3"
    assert re.fullmatch(r"\d+\.\d\d %", badge["message"])
    colours = [json.loads(render("badge", made.plain(), some))["color"] for some in (
        GATES, GATES[:2], GATES[:1], [],
    )]  # fmt: skip
    assert colours == ["red", "yellow", "brightgreen", "blue"]
    assert "bounds nothing" in json.loads(render("badge", made.estimated()))["message"]


def test_the_csv_has_a_row_a_sample():
    results = made.full(50)
    rows = list(csv.DictReader(io.StringIO(render("csv", results))))
    assert len(rows) == 50
    for row, sample in zip(rows, results.samples, strict=True):
        assert float(row["radius"]) == sample["radius"]
        assert row["lipschitz"] == str(sample["lipschitz"] or "")
        held = [eps for eps in made.EPS if row[f"certified_at_{eps}"] == "1"]
        assert held == sample["certified"]


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        " =1",
        "＝1",
        "|calc",
        "%0a=1",
        "a;=1",
        "a\r=1",
    ],
)
def test_a_cell_that_begins_like_a_formula_is_defused(text):
    results = made.full(5)
    results.samples[2]["message"] = text
    results.samples[2]["margin"] = -1.5
    results.certificate["cascade"][0]["rung"] = text
    reader = csv.reader(io.StringIO(render("csv", results), newline=""))
    head, *rows = reader
    cell = rows[2][head.index("message")]
    assert cell != text
    assert cell.replace("'", "") == text.replace("\r", " ")
    assert not re.search(r"(^|[;\t\r\n])\s*[=+\-@＝|%]", cell)
    # Numbers stay numbers, and texts that compute nothing stay as they are.
    assert rows[2][head.index("margin")] == "-1.5"
    assert rows[2][head.index("method")] == "local"
    starts = {cell[:1] for row in (head, *rows) for cell in row if not is_number(cell)}
    assert not starts & set("=+-@＝|%")


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_the_model_card_is_the_model_index_of_a_hub():
    results = made.plain()
    results.certificate["data"]["name"] = 'my: "data" #1'
    _, head, rest = render("model-card", results).split("---\n")
    assert rest == ""
    (model,) = yaml.safe_load(head)["model-index"]
    (result,) = model["results"]
    assert model["name"] == "digits.onnx"
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"]["args"] == {"sha256": made.DIGEST[::-1]}
    assert result["dataset"]["name"] == result["dataset"]["type"] == 'my: "data" #1'
    metrics = {metric["name"]: metric["value"] for metric in result["metrics"]}
    summary = results.summary
    assert metrics["Clean accuracy (% of 300)"] == pytest.approx(
        100 * summary["clean_accuracy"], abs=0.01
    )
    (certified,) = [value for name, value in metrics.items() if "eps 36/255" in name]
    assert certified <= 100 * summary["certified_accuracy"]["36/255"] < certified + 0.01
    assert all({"type", "name", "value"} == set(metric) for metric in result["metrics"])


def test_markdown_shows_gates_and_shares_and_lets_no_name_act():
    results = made.plain()
    results.certificate["model"]["name"] = "<img src=x>|`a`[b](c).onnx"
    text = render("markdown", results, GATES)
    assert "❌ fail | certified accuracy at eps 0.3 | 598/1000 = 59.80 % &lt; 60 %" in text
    assert "<img" not in text
    assert "](c)" not in text.replace("\\]", "")
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if "gate" in line}
    assert widths == {4}


def test_the_summary_grows_and_is_cut_at_a_line(tmp_path):
    path = tmp_path / "summary.md"
    markdown.append_summary(path, "one\n")
    markdown.append_summary(path, "two\n")
    assert path.read_text() == "one\ntwo\n"
    markdown.append_summary(path, "a long line\n" * 100, limit=200)
    text = path.read_text()
    assert len(text.encode()) <= 200
    assert text.endswith("a long line\n\n\n…cut here, as the summary would be too long.\n")
    markdown.append_summary(path, "more\n" * 100, limit=200)
    assert len(path.read_text().encode()) <= 200
    with pytest.raises(UsageError, match="GITHUB_STEP_SUMMARY"):
        markdown.append_summary(tmp_path / "no" / "such", "text")


def test_comparisons_tell_the_same_in_every_format():
    older = made.samples(100)
    newer = tuple(row | {"radius": row["radius"] * 1.2} for row in older)
    lost = next(row for row in newer if "0.3" in row["certified"])
    lost["certified"] = []
    of_newer = made.certificate(newer)
    of_newer["options"]["effort"] = "max"
    found = compare(made.certificate(older), of_newer, older, newer)
    texts = {name: make(found) for name, make in comparison.FORMATS.items()}
    for name in ("text", "markdown", "html"):
        assert "certified at eps 0.3" in texts[name]
        assert f"Lost at eps 0.3: {lost['index']}." in texts[name]
        assert "-1.00 pp" in texts[name]
        assert "Besides the model differ: effort (standard, now max)." in texts[name]
    assert "<svg" in texts["html"]
    assert json.loads(texts["json"])["lost"] == [lost["index"]]
    assert len(json.loads(texts["json"])["radii"]) == 100


def test_an_attack_makes_certified_accuracy_an_interval():
    results = made.full()
    upper, certified = (results.summary[f"{word}_count"]["0.3"] for word in ("upper", "certified"))
    assert certified < upper < 300
    ends = f"[{percent(certified, 300)}, {percent_up(upper, 300)}]"
    text = render("markdown", results).replace("\\", "")
    assert f"{ends} ({certified} certified, {upper} not falsified, of 300)" in text
    page = render("html", results)
    assert f"not falsified: {percent_up(upper, 300)}".replace(" %", "&nbsp;%") in page
    assert page.count("not falsified") >= 2
    _, head, _ = render("model-card", results).split("---\n")
    metrics = yaml.safe_load(head)["model-index"][0]["results"][0]["metrics"]
    (most,) = [m["value"] for m in metrics if "Not falsified" in m["name"] and "0.3" in m["name"]]
    assert most >= 100 * upper / 300 > most - 0.01
    for results in (made.plain(), made.estimated()):
        for format in ("markdown", "html"):
            assert "not falsified" not in render(format, results)


def test_gates_of_a_report_are_those_of_the_gate_command():
    results = made.plain()
    asked = Thresholds.parse(min_certified=["0.1=0.99"], min_clean="0.5")
    outcomes = evaluate(asked, results.certificate, results.samples)
    for format in ("html", "markdown", "junit", "attestation"):
        text = render(format, results, outcomes)
        for outcome in outcomes:
            assert outcome.message.split(" = ")[0] in text
