"""Samples that are read as they are wanted: the same as those in memory, and none that changed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report import made

from lipcert.errors import CannotCertify, UsageError
from lipcert.records import Frame
from lipcert.records.certificate_rules import differing
from lipcert.records.figures import Figures
from lipcert.records.lines import Lines, lines_of
from lipcert.records.strict_json import parse
from lipcert.tally import Tally


@pytest.fixture
def kept(tmp_path):
    path = made.save(tmp_path / "run", made.full()) / "samples.jsonl"
    lines = Lines(path)
    for line in lines_of(path):
        lines.append(line)
    return lines, path


def test_lines_are_the_samples_of_the_file(kept):
    lines, path = kept
    expected = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(lines) == expected
    assert len(lines) == len(expected)
    assert [lines[0], lines[7], lines[-1]] == [expected[0], expected[7], expected[-1]]
    assert lines[2:9:3] == expected[2:9:3]
    with pytest.raises(IndexError):
        lines[len(expected)]


@pytest.mark.parametrize("change", ["other", "longer", "shorter"])
def test_a_file_that_changes_after_it_was_checked_is_refused(kept, change):
    lines, path = kept
    content = path.read_bytes()
    first = content.index(b'"radius": ') + 10
    other = bytes([content[first] ^ 1])
    changed = {
        "other": content[:first] + other + content[first + 1 :],
        "longer": content + content.splitlines(keepends=True)[0],
        "shorter": b"".join(content.splitlines(keepends=True)[:-1]),
    }
    path.write_bytes(changed[change])
    with pytest.raises(CannotCertify, match="changed while it was read"):
        list(lines)
    if change != "longer":
        with pytest.raises(CannotCertify, match="changed while it was read"):
            lines[0 if change == "other" else -1]


def test_a_line_that_is_cut_off_is_named(kept):
    _, path = kept
    count = len(path.read_bytes().splitlines())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CannotCertify, match=f"line {count}: is damaged: it is cut off; again"):
        list(lines_of(path, "again"))


def test_what_is_no_file_is_not_read(tmp_path):
    with pytest.raises(UsageError, match="no regular file"):
        list(lines_of(tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        list(lines_of(tmp_path / "absent"))


@pytest.mark.parametrize("results", [made.full, made.plain], ids=["full", "plain"])
def test_the_figures_of_a_certificate_are_those_of_the_tally(results):
    """Two lots of code that share nothing agree on every figure."""
    found = results()
    frame = Frame.of(found.certificate)
    figures = Figures(frame)
    for sample in found.samples:
        figures.add(sample)
    tally = Tally.of(found.samples, found.certificate["options"]["eps"], estimate=frame.estimate)
    assert differing("summary", figures.summary(), tally.summary()) is None
    cascade = {row["rung"]: row for row in tally.cascade()}
    assert differing("cascade", figures.cascade(), cascade) is None
    assert figures.spent == pytest.approx(tally.spent)
    assert figures.twice is None
    figures.add(found.samples[3])
    assert figures.twice == (found.samples[3]["index"], 2)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}', '{"a": {"b": "c", "b": "d"}}', '{"a": [{"b": 1, "b": 2}]}',
        '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1E+0999}', '{"a": 17e308}',
        '{"a": ' + "9" * 400 + "}", '{"a": ' + "9" * 39 + "}", '{"a": ' + "9" * 400 + ".0}",
        '{"a": "\\ud800"}', '{"a": ' + "[" * 20 + "]" * 20 + "}", "[1]", '"a"', "",
        '{"a": 1, "\\u0061": 2}',
    ],
)  # fmt: skip
def test_what_a_lax_reader_takes_is_refused(text):
    with pytest.raises(CannotCertify, match="here: is "):
        parse(text.encode(), "here")


texts = st.text(st.characters(codec="utf-8"), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(texts, values, max_size=4), st.booleans())
def test_everything_else_is_read_as_it_was_written(record, escaped):
    assert parse(json.dumps(record, ensure_ascii=escaped).encode(), "here") == record
