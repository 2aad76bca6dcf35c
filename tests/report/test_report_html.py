import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from report import made

from lipcert.certificate import PIXELS, Verdict
from lipcert.errors import CannotCertify
from lipcert.gate import Outcome
from lipcert.records import schemas
from lipcert.report import html_page
from lipcert.report.numbers import percent
from lipcert.report.reading import read_results
from lipcert.report.results import Results
from lipcert.report.style import DARK, LIGHT
from lipcert.report.svg import Axes, steps, ticks
from lipcert.report.terms import VERDICTS
from lipcert.report.thumbnails import difference

GATES = [Outcome("clean accuracy", "fail", "1/2 = 50.00 % < 60 %")]


class Reader(HTMLParser):
    """Collects tags, and whether all of them are closed in order."""

    EMPTY = ("meta", "link", "img", "br", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.said: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


PAGES = {
    "full": html_page.render(made.full(), GATES),
    "plain": html_page.render(made.plain()),
    "estimate": html_page.render(made.estimated()),
    "one sample": html_page.render(made.plain(1)),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_well_formed_and_names_no_other_place(name):
    reader = Reader(PAGES[name])
    assert reader.open == []
    assert reader.all("script") == []
    for tag, attributes in reader.tags:
        for attribute in ("src", "href", "srcset", "action", "xlink:href"):
            address = attributes.get(attribute, "data:")
            assert address.startswith(("data:", "#")), (tag, address)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in PAGES[name]
    assert "@import" not in PAGES[name]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_can_be_used_without_sight_or_mouse(name):
    reader = Reader(PAGES[name])
    assert reader.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for picture in reader.all("svg"):
        if picture.get("aria-hidden") != "true":
            assert picture["role"] == "img"
            assert set(picture["aria-labelledby"].split()) <= set(ids)
    assert all(image["alt"] for image in reader.all("img"))
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in (
        attributes for _, attributes in reader.tags if attributes.get("role") == "region"
    ))  # fmt: skip
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert {"href": "#main", "class": "skip"}.items() <= reader.all("a")[0].items()
    assert all(cell.get("scope") in ("row", "col") for cell in reader.all("th"))


def test_the_page_shows_all_there_is():
    text = " ".join(Reader(PAGES["full"]).said)
    for part in (
        "digits.onnx on digits test", "Gates", "1/2 = 50.00 % < 60 %", "upper bound", "Cascade",
        "18.75 s", "Layers", "input → relu1", "41.7 %", "Smallest radii",
        "Largest radii", "Counterexamples", "L2 distance ≤", "more in counterexamples.npz",
        "at most 1.1e-09", made.DIGEST,
    ):  # fmt: skip
        assert part in text
    pictures = Reader(PAGES["full"]).all("img")
    assert len(pictures) == 8 + 8 + 3 * 8


def test_what_a_certificate_lacks_is_left_out():
    text = " ".join(Reader(PAGES["plain"]).said)
    for part in ("Gates", "Cascade", "Layers", "Worst and best", "Counterexamples", "attack"):
        assert part not in text
    assert "certified accuracy at eps 0.3" in text
    assert Reader(PAGES["plain"]).all("img") == []


def test_counterexamples_without_originals_are_shown_alone():
    results = made.full(100)
    results.images.clear()
    reader = Reader(html_page.render(results))
    assert [image["alt"][:14] for image in reader.all("img")] == ["counterexample"] * 8


def test_names_are_shown_as_they_are_and_never_act():
    results = made.full(40)
    results.certificate["model"]["name"] = '<script>alert("1")</script>&.onnx'
    results.certificate["notes"] = ["<img src=x onerror=alert(1)>"]
    reader = Reader(html_page.render(results, [Outcome("<b>", "warn", "</main>")]))
    assert reader.all("script") == []
    assert '<script>alert("1")</script>&.onnx on digits test' in reader.said


def test_ten_thousand_samples_stay_below_three_megabytes():
    page = html_page.render(made.full(10_000))
    assert len(page.encode()) < 3_000_000


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out(colours):
    for name in set(colours) - {"page", "panel", "rule"}:
        for ground in ("page", "panel"):
            one, other = sorted((luminance(colours[name]), luminance(colours[ground])))
            assert (other + 0.05) / (one + 0.05) >= 4.5, (name, ground)


@pytest.mark.parametrize("up", [False, True])
def test_a_step_line_never_leaves_its_side(up):
    axes = Axes((0, 1), (0, 1), "x", "y")
    corners = [(0.0, 1.0), *((i / 997, 1 - i / 997) for i in range(1, 997))]
    path = re.search(r'd="(.*?)"', steps(axes, corners, "s", up=up))[1]
    first, *moves = re.findall(r"[MH]([\d.]+)(?: |V)([\d.]+)", path)
    assert float(first[0]) == axes.at_x(0)
    for x, y in moves:
        drawn = (float(x) - axes.at_x(0)) / (axes.at_x(1) - axes.at_x(0))
        height = (axes.at_y(0) - float(y)) / (axes.at_y(0) - axes.at_y(1))
        # The true value just before and just after this place, to the drawing's rounding.
        true = 1 - drawn
        assert height >= true - 0.003 if up else height <= true + 0.003


def test_ticks_are_round_numbers_inside():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 0.33) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert ticks(-3, 17) == [0, 5, 10, 15]
    for high in (1e-9, 0.07, 3, 12345):
        marks = ticks(0, high)
        assert 2 <= len(marks) <= 7
        assert marks[-1] <= high * (1 + 1e-9)


def verdict_of(page: str) -> str:
    (found,) = re.findall(r'<p class="verdict (\w+)" role="status">(.*?)</p>', page)
    return f"{found[0]}: {re.sub('<[^>]*>', '', found[1])}"


def test_the_verdict_of_the_gates_stands_first_with_the_figure_that_decided():
    good = Outcome("clean accuracy", "pass", "95/100 = 95.00 % ≥ 90 %")
    bad = Outcome("certified accuracy at eps 0.3", "fail", "59/100 = 59.00 % < 60 %")
    page = html_page.render(made.full(), [good, bad])
    assert verdict_of(page) == f"fail: FAIL {bad.gate}: {bad.message}".replace("<", "&lt;")
    assert page.index('class="verdict') < page.index('class="cards"')
    assert verdict_of(html_page.render(made.full(), [good])).startswith("pass: PASS clean accuracy")
    assert 'class="verdict' not in html_page.render(made.full())


def test_the_head_has_the_date_and_the_digest_of_the_model():
    results = made.full()
    dated = results.certificate | {"finished": "2026-11-30T08:40:12Z"}
    head = html_page.render(replace(results, certificate=dated)).split("</header>")[0]
    assert "2026-11-30 08:40 UTC" in head
    assert made.DIGEST in head


def test_counterexamples_tell_what_they_are_taken_for_and_show_the_difference():
    results = made.full()
    index = next(i for i in results.counterexamples if i in results.images)
    page = html_page.render(replace(results, taken_for={index: 7}))
    assert f"no. {index}, class {results.samples[index]['label']}, taken for 7" in page
    assert f"difference of sample {index}, " in page
    image = np.full((1, 2, 2), 100, np.uint8)
    other = image + np.array([[[0, 1], [10, 3]]], np.uint8)
    shown, times = difference(image, other)
    assert times == 12
    assert shown.tolist() == [[[128, 140], [248, 164]]]


def test_single_samples_are_listed_open_ones_first_and_can_be_filtered():
    results = made.full()
    page = html_page.render(results)
    rows = re.findall(r'<tr class="is-(\w+)"><th scope="row">(\d+)</th>', page)
    assert sorted(int(index) for _, index in rows) == list(range(len(results.samples)))
    verdicts = [verdict for verdict, _ in rows]
    assert verdicts == sorted(verdicts, key=("falsified unknown misclassified certified").index)
    for verdict in {*verdicts, "all"}:
        assert f'id="only-{verdict}"' in page
    assert "<script" not in page
    # A falsified sample is predicted right: what its counterexample is taken for is another thing.
    one = next(s for s in results.samples if s["verdict"] == "falsified")
    label, predicted = results.class_name(one["label"]), results.class_name(one["prediction"])
    assert f'data-name="class">{label}</td><td data-name="prediction">{predicted}</td>' in page
    large = html_page.render(made.full(1200))
    assert large.count('<tr class="is-') == 500
    assert "700 more in samples.jsonl" in large


def test_an_interval_whose_ends_are_one_count_is_none():
    results = made.full()
    (eps, _), n = results.eps[0], results.summary["n"]
    upper = {"upper_count": results.upper | {eps: results.counts[eps]}}
    certificate = results.certificate | {"summary": results.summary | upper}
    closed = replace(results, certificate=certificate)
    share = re.escape(percent(results.counts[eps], n))
    assert re.search(f">{share}</td><td[^>]*>none is open</td>", html_page.render(closed))
    assert "none is open</td>" not in html_page.render(results)


def test_an_audit_is_shown_where_it_is_of_these_files(tmp_path):
    made.save(tmp_path, made.full())
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "certificate.json", tmp_path / "samples.jsonl")
    }

    def sample(index, outcome):
        finding = {"claim": "radius 0.1", "outcome": outcome, "by": "the test"}
        return {
            "index": index, "verdict": "certified", "outcome": outcome, "radius": 0.1,
            "proven_radius": None, "findings": [finding], "points": 0, "seconds": 0.1,
        }  # fmt: skip

    audit = {
        "schema": schemas.schema_id("audit"), "agreement": True, "of": 300,
        "samples": [sample(k, "confirmed" if k < 18 else "not contradicted") for k in range(20)],
        "files": digests | {"m.onnx": "0" * 64}, "files_contradict": [], "lipcert": "0.1.0",
        "counts": {"confirmed": 18, "not contradicted": 2, "contradicted": 0}, "model": "m.onnx",
        "data": "digits test", "unit": PIXELS, "seed": 0, "reading": "available",
        "bound": "available", "proofs": None, "precision": "64 bits", "seconds": 1.0,
    }  # fmt: skip
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    page = html_page.render(read_results(tmp_path))
    assert "20 of 300 samples were audited" in page
    assert "Nothing is contradicted" in page
    broken = audit | {
        "agreement": False, "samples": [*audit["samples"][:-1], sample(19, "contradicted")],
        "counts": {"confirmed": 18, "not contradicted": 1, "contradicted": 1},
    }  # fmt: skip
    (tmp_path / "audit.json").write_text(json.dumps(broken))
    assert "CONTRADICTS the certificate" in html_page.render(read_results(tmp_path))
    other = audit | {"files": digests | {"certificate.json": "0" * 64}}
    (tmp_path / "audit.json").write_text(json.dumps(other))
    assert "were audited" not in html_page.render(read_results(tmp_path))
    for forged in (
        {"files": []}, audit | {"samples": [{}] * 20}, audit | {"agreement": 1},
        audit | {"counts": audit["counts"] | {"confirmed": 19}}, broken | {"agreement": True},
        broken | {"counts": audit["counts"]}, audit | {"of": "300"}, [audit],
    ):  # fmt: skip
        (tmp_path / "audit.json").write_text(json.dumps(forged))
        with pytest.raises(CannotCertify, match=r"audit\.json: (is damaged|cannot).*audit again"):
            read_results(tmp_path)


def test_axes_that_count_have_whole_numbers():
    assert ticks(0, 3.24, whole=True) == [0, 1, 2, 3]
    assert ticks(0, 12, whole=True) == [0, 5, 10]
    assert ticks(0, 1, whole=True) == [0, 1]
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_a_report_without_a_correct_sample_has_no_empty_charts():
    rows = tuple(
        row | {"prediction": (row["label"] + 1) % 10, "verdict": "misclassified", "radius": 0.0,
               "certified": [], "lipschitz": None}
        for row in made.samples(20, attacked=False)
    )  # fmt: skip
    page = html_page.render(Results(made.certificate(rows), rows))
    assert "Histogram of radii" not in page
    assert "none correct" in page
    assert 'd=""' not in page


def test_the_glossary_has_the_words_of_the_page():
    assert set(VERDICTS) == set(get_args(Verdict))
    page = html_page.render(made.full())
    for name in (*made.full().summary["verdicts"], "certified accuracy", "rung", "eps"):
        assert f"<dt>{name}</dt>" in page
    assert "<dt>rung</dt>" not in html_page.render(made.plain())
    assert "<dt>timeout</dt>" not in page
