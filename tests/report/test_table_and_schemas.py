import copy
import dataclasses
import io
import json
import math

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lipcert.certificate import Assurance, Certificate, Sample, summarise
from lipcert.errors import UsageError
from lipcert.options import Epsilon, Options
from lipcert.report import json_file
from lipcert.report.numbers import percent, percent_up, rounded_down, rounded_up
from lipcert.report.provenance import provenance
from lipcert.report.results import of_run
from lipcert.report.table import table

DIGEST = "0" * 64
EPS = ["0.1", "36/255"]


def samples(*, estimate: bool = False) -> list[Sample]:
    if estimate:
        given = {"radius_estimate": 0.12, "lipschitz_estimate": 3.0}
        return [
            Sample(0, 1, 1, "unknown", 2.0, None, None, "local", 0.1, estimated=("0.1",), **given),
            Sample(3, 1, 2, "misclassified", 1.0, None, None, "local", 0.1),
            Sample(4, 1, 1, "estimated", 3.0, None, None, "local", 0.1, estimated=tuple(EPS)),
        ]
    return [
        Sample(0, 1, 1, "unknown", 2.0, 0.12, 3.0, "local", 0.1, ("0.1",), 1e-11),
        Sample(3, 1, 2, "misclassified", 1.0, 0.0, None, "local", 0.1),
        Sample(4, 1, 1, "certified", 3.0, 0.2, math.inf, "local", 0.1, tuple(EPS)),
        Sample(5, 1, -1, "error", math.nan, 0.0, None, "local", 0.1, message="ValueError: bad"),
    ]


def certificate(*, kind: str = "randomised", **changes) -> Certificate:
    estimate = kind == "estimate"
    norms = {"randomised": "randomised", "deterministic": "deterministic"}.get(kind, "estimate")
    options = Options(eps=tuple(map(Epsilon.parse, EPS)), norms=norms)
    made = Certificate(
        lipcert="0.1.0",
        model={
            "name": "model.onnx",
            "format": "onnx",
            "opset": 17,
            "files": {"model.onnx": DIGEST},
            "input_shape": [1, 1, 8, 8],
            "classes": 10,
            "parameters": 650,
            "stripped": "Softmax",
            "preprocessing": {
                "mean": [0.5], "std": None, "layout": "CHW", "value_range": [0.0, 1.0],
            },
            "cross_check": {
                "samples": 32,
                "max_relative_difference": 1.24e-7,
                "onnx2torch": None,
                "onnx2torch_note": "not available: no converter",
            },
        },
        data={
            "name": "digits",
            "split": "test",
            "source": "digits, embedded",
            "sha256": DIGEST,
            "size": 360,
            "classes": 10,
            "chosen": 4,
            "indices_sha256": DIGEST,
            "shard": None,
        },
        options=options.to_json(),
        options_digest=options.digest,
        assurance=Assurance(kind, 1.04e-9 if kind == "randomised" else 0.0),
        samples_sha256=DIGEST,
        summary=summarise(samples(estimate=estimate), EPS, estimate=estimate),
        environment=dict.fromkeys(
            ("python", "lipcert", "torch", "numpy", "onnx", "onnxruntime", "platform", "device"),
            "1.0",
        )
        | {"threads": 2},
        seconds=1.5,
        notes=(json_file.ESTIMATE,) if estimate else (),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def shown(made: Certificate, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(made, width=width))
    return console.export_text()


def test_the_table_tells_the_result_its_assurance_and_the_threat():
    text = shown(certificate())
    for part in (
        "50.00 % (2 of 4)",
        "certified accuracy at eps 36/255",
        "25.00 % (1 of 4)",
        "mean 0.16, median 0.16",
        "1 certified, 1 error, 1 misclassified, 1 unknown",
        "at most 1.1e-09",
        "L2, eps in pixels [0,1]",
        "float32 model, its rounding in any summation order included",
        "Softmax at the end",
        "1.3e-07 from onnxruntime on 32 samples",
        "onnx2torch not available: no converter",
    ):
        assert part in text


def attacked(*, estimate: bool = False) -> Certificate:
    """One is broken just below 0.1, one beyond all eps, one not at all, one within all."""
    word = "estimated" if estimate else "certified"
    reach = [math.nextafter(0.1, 0), 0.9, math.inf, 0.05]
    rows = [
        Sample(i, 1, 1, "unknown", 2.0, None if estimate else 0.0, None, "dual", 0.1,
               attack_radius=x, rungs={"attack": 0.1}, **{word: ("0.1",) if i == 1 else ()})
        for i, x in enumerate(reach)
    ]  # fmt: skip
    rows.append(Sample(4, 1, 2, "misclassified", 1.0, None, None, "local", 0.1))
    made = certificate(kind="estimate" if estimate else "randomised")
    return dataclasses.replace(made, summary=summarise(rows, EPS, estimate=estimate))


def test_certified_accuracy_is_an_interval_where_an_attack_closes_it():
    made = attacked()
    assert made.summary["upper_count"] == {"0.1": 2, "36/255": 2}
    assert made.summary["upper_accuracy"] == {"0.1": 0.4, "36/255": 0.4}
    text = shown(made)
    assert "[20.00 %, 40.00 %] (1 certified, 2 not falsified, of 5)" in text
    assert "[0.00 %, 40.00 %] (0 certified, 2 not falsified, of 5)" in text
    jsonschema.validate(
        json.loads(json_file.certificate_text(made)), json_file.schema("certificate")
    )
    assert "upper_count" not in certificate().summary
    assert "falsified" not in shown(certificate())


def test_one_count_is_no_interval():
    summary = attacked().summary
    closed = summary | {"upper_count": summary["certified_count"]}
    text = shown(dataclasses.replace(attacked(), summary=closed))
    assert "20.00 % (1 certified, none open, of 5)" in text
    assert "[" not in text.split("threat model")[0]


def test_a_narrow_terminal_leaves_most_of_its_columns_to_the_values():
    lines = shown(certificate(), 60).splitlines()
    assert max(map(len, lines)) <= 60
    names, values = zip(*(line.split("│")[1:3] for line in lines if "│" in line), strict=True)
    assert {len(value) for value in values} == {60 - 3 - len(names[0])}
    assert len(values[0]) >= 38
    said = " ".join(" ".join(names).split())
    assert "certified accuracy at eps 36/255" in said


def test_an_estimate_is_no_end_of_an_interval():
    text = shown(attacked(estimate=True))
    assert "20.00 % (1 of 5), bounds nothing" in text
    assert "[" not in text.split("threat model")[0]


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_shares_are_shown_on_their_own_side(pair):
    count, n = pair
    low, high = (float(show(count, n).split()[0]) for show in (percent, percent_up))
    assert low <= 100 * count / n + 1e-9
    assert high >= 100 * count / n - 1e-9
    assert high - low <= 0.01 + 1e-9


def test_deterministic_norms_speak_of_no_probability():
    text = shown(certificate(kind="deterministic"))
    assert "deterministic: every norm is an upper bound" in text
    assert "probability" not in text


def test_every_rung_tells_what_it_decided_and_cost():
    rung = {"rung": "local", "samples": 4, "decided": 3, "seconds": 1.25}
    made = certificate(cascade=[rung, rung | {"rung": "dual", "samples": 1, "decided": 0}])
    text = shown(made)
    assert "local: 3 of the 4 that reached it, 1.2 s in all" in text
    assert "dual: 0 of the 1 that reached it, 1.2 s in all" in text
    assert "decided by" not in shown(certificate())


def test_the_effort_is_told():
    assert "and an attack; effort standard; norms randomised" in shown(certificate())
    results = of_run(certificate(), samples())
    assert "auto, effort standard, norms randomised" in dict(provenance(results))["method"]


def test_an_analysis_in_float32_is_told():
    assert "float" not in dict(provenance(of_run(certificate(), samples())))["method"]
    single = certificate(options=certificate().options | {"dtype": "float32"})
    assert "in float32; norms" in " ".join(shown(single).split())
    assert "in float32, norms" in dict(provenance(of_run(single, samples())))["method"]


def test_norms_without_a_probability_to_fail_are_deterministic():
    options = certificate().options | {"failure_probability": 0}
    assert "norms deterministic" in " ".join(shown(certificate(options=options)).split())
    assert "norms randomised" in " ".join(shown(certificate()).split())


def test_real_arithmetic_says_that_rounding_is_not_covered():
    options = certificate().options | {"deployed": "real"}
    assert "not covered" in shown(certificate(options=options))


def test_the_format_and_the_size_of_its_rounding_are_told():
    options = certificate().options | {"deployed": "bfloat16"}
    summary = certificate().summary | {"deployed_error": {"median": 0.02, "median_share": 0.0123}}
    text = " ".join(shown(certificate(options=options, summary=summary)).split())
    assert "bfloat16 model" in text
    assert "accumulated in float32: it took 1.3e-02 of the margin in the median" in text


def test_names_are_shown_as_they_are():
    model = certificate().model | {"name": "a[red]b[/]:smile:.onnx"}
    assert "a[red]b[/]:smile:.onnx on digits" in shown(certificate(model=model))


def test_an_estimate_is_called_one_in_every_output_and_never_certified():
    made = certificate(kind="estimate")
    texts = [shown(made), json_file.certificate_text(made)]
    texts += [
        json.dumps(json_file.sample_record(sample, estimate=True))
        for sample in samples(estimate=True)
    ]
    for text in texts:
        assert "ESTIMATE" in text
        assert "certified" not in text.lower()
    assert "ESTIMATE: accuracy at eps 0.1" in texts[0]
    assert texts[0].count("bounds nothing") >= 4


@given(st.floats(0, 1e12))
def test_radii_are_shownrounded_down_and_probabilities_up(value):
    assert float(rounded_down(value)) <= value <= float(rounded_up(value))
    assert float(rounded_down(value)) >= 0.998 * value - 5e-324
    assert float(rounded_up(value)) <= 1.11 * value + 5e-324


@pytest.mark.parametrize("kind", ["randomised", "deterministic", "estimate"])
def test_files_are_valid_and_read_back_as_they_were(tmp_path, kind):
    made, rows = certificate(kind=kind), samples(estimate=kind == "estimate")
    paths = json_file.write(tmp_path / "new", made, rows)
    assert [path.name for path in paths] == ["certificate.json", "samples.jsonl"]
    jsonschema.validate(json.loads(paths[0].read_text()), json_file.schema("certificate"))
    for line in paths[1].read_text().splitlines():
        jsonschema.validate(json.loads(line), json_file.schema("sample"))
    again = [Sample.from_json(json.loads(line)) for line in paths[1].read_text().splitlines()]
    assert [sample.to_json() for sample in again] == [sample.to_json() for sample in rows]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [p.name for p in paths]


def test_a_shard_writes_files_of_its_own(tmp_path):
    data = certificate().data | {"shard": "2/3"}
    paths = json_file.write(tmp_path, certificate(data=data), [])
    assert [path.name for path in paths] == ["certificate.2-of-3.json", "samples.2-of-3.jsonl"]
    assert "shard 2/3" in shown(certificate(data=data))


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "certificate.json").write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        json_file.write(tmp_path, certificate(seconds=math.nan), samples())
    assert (tmp_path / "certificate.json").read_text() == "old"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        json_file.write(tmp_path / "file", certificate(), samples())


def changed(record: dict, path: str, value: object) -> dict:
    record = copy.deepcopy(record)
    *parents, last = path.split(".")
    place = record
    for name in parents:
        place = place[name]
    place[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("extra", 1),
        ("model.path", "somewhere/else"),
        ("options.method", "exact"),
        ("options_digest", "abc"),
        ("assurance.kind", "certain"),
        ("assurance.kind", "estimate"),
        ("assurance.failure_probability", 1),
        ("summary.clean_accuracy", 1.5),
        ("summary.verdicts", {"robust": 1}),
        ("summary.verdicts", {"estimated": 1}),
        ("summary.estimated_count", {}),
        ("data.shard", "first"),
        ("threat_model.norm", "linf"),
        ("environment.threads", None),
    ],
)
def test_the_certificate_schema_refuses(path, value):
    schema = json_file.schema("certificate")
    record = json.loads(json_file.certificate_text(certificate()))
    jsonschema.validate(record, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(record, path, value), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("verdict", "robust"),
        ("verdict", "estimated"),
        ("radius_estimate", 0.1),
        ("radius", -1),
        ("index", -1),
        ("assurance", "ESTIMATE"),
        ("extra", 1),
    ],
)
def test_the_sample_schema_refuses(path, value):
    schema = json_file.schema("sample")
    record = json.loads(json.dumps(samples()[0].to_json()))
    jsonschema.validate(record, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(record, path, value), schema)


@pytest.mark.parametrize("name", ["certificate", "sample"])
def test_schemas_are_schemas(name):
    jsonschema.Draft202012Validator.check_schema(json_file.schema(name))
