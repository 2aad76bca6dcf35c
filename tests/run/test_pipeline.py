import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from lipcert.certificate import Sample
from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, InternalError, UsageError
from lipcert.options import Epsilon, Options
from lipcert.records import read
from lipcert.report import json_file
from lipcert.run import Execution, ModelSource, Preprocessing, Shard, certify_dataset, open_model
from lipcert.run.progress import ConsoleWatch

DIGITS = load_dataset("digits")
CHOSEN = np.arange(5, 35)
OPTIONS = Options(eps=(Epsilon.parse("0.1"),))
LOCAL = Options(eps=OPTIONS.eps, method="local")
ESTIMATE = Options(eps=(Epsilon.parse("0.1"),), norms="estimate")


def point(index: int) -> np.ndarray:
    """The counterexample that a fake finds: outside [0, 1] too, and no multiple of 1 / 255."""
    return np.full((1, 8, 8), 1.1 + index / 3, np.float32)


class FakeCertifier:
    """Says what it is told to, and remembers how it was called."""

    def __init__(self, *, bad=(), stop_at=None, verdict="certified", broken=()) -> None:
        self.bad, self.stop_at, self.verdict = set(bad), stop_at, verdict
        self.broken = set(broken)
        self.seen: list[int] = []
        self.global_failure_probability = 1e-10

    def layer_norms_asked(self, samples):
        return []

    def make(
        self, network, options, *, samples, shards, device, softmax, counterexamples, reach, key,
        file,
    ):  # fmt: skip
        self.key, self.shards = key, shards
        self.samples, self.counterexamples = samples, counterexamples
        return self

    def __call__(self, pixels, labels, indices):
        assert np.array_equal(pixels.numpy(), DIGITS.pixels(np.asarray(indices)))
        if self.stop_at in indices:
            raise KeyboardInterrupt
        if self.bad & set(indices):
            raise ValueError("bad sample")
        self.seen += indices
        if self.counterexamples is not None:
            self.counterexamples |= {i: point(i) for i in self.broken & set(indices)}
        return [
            Sample(
                i, int(y), int(y), self.verdict, 1.0, 0.1 + i / 1e3, 2.0, "local", 0.01, ("0.1",)
            )
            if i not in self.broken
            else Sample(
                i, int(y), int(y), "falsified", 1.0, 0.01, 2.0, "dual", 0.01, attack_radius=0.05
            )
            for i, y in zip(indices, labels, strict=True)
        ]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The nearest class mean, which is a linear classifier."""
    means = np.stack([DIGITS.images[DIGITS.labels == k].mean(0).ravel() for k in range(10)])
    arrays = {"W": 2 * means, "b": -(means**2).sum(1)}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "W", "b"], ["y"], transB=1),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    made = tmp_path_factory.mktemp("model") / "means.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), made)
    return made


@pytest.fixture(scope="module")
def model(path):
    return open_model(ModelSource(path), Preprocessing())


def run(model, fake, *, options=OPTIONS, indices=CHOSEN, **execution):
    return certify_dataset(
        model, DIGITS, indices, options, Execution(**execution), make_certifier=fake.make
    )


def test_samples_come_back_in_the_order_asked_for(model):
    backwards = CHOSEN[::-1]
    result = run(model, FakeCertifier(), indices=backwards, batch_size=7)
    assert [sample.index for sample in result.samples] == list(backwards)
    assert result.summary["certified_count"] == {"0.1": 30}
    assert result.certificate.assurance.failure_probability == 1e-10


def test_a_bad_sample_is_recorded_and_the_others_go_on(model):
    result = run(model, FakeCertifier(bad={7, 20}), batch_size=8)
    errors = [sample for sample in result.samples if sample.verdict == "error"]
    assert [sample.index for sample in errors] == [7, 20]
    assert "misclassified" not in result.summary["verdicts"]
    assert result.summary["n"] == 30
    assert any("2 samples failed" in note and "bad sample" in note
               for note in result.certificate.notes)  # fmt: skip


def test_an_internal_error_leaves_the_clean_accuracy_as_it_is(model, tmp_path):
    """The network itself says what it predicts, whatever its certifier does."""
    whole = certify_dataset(model, DIGITS, CHOSEN, LOCAL, Execution())
    result = run(model, FakeCertifier(bad=CHOSEN), output=tmp_path)
    assert result.summary["verdicts"] == {"error": 30}
    assert result.summary["clean_correct"] == whole.summary["clean_correct"] < 30
    for one, other in zip(result.samples, whole.samples, strict=True):
        assert one.prediction == other.prediction
        assert one.margin == pytest.approx(other.margin)
        assert (one.radius, one.certified) == (0.0, ())
    # All of it is kept, and can be read.
    assert read(tmp_path).certificate["summary"] == result.summary


def test_a_run_of_a_network_that_gives_no_numbers_is_refused(path, tmp_path):
    broken = onnx.load(path)
    broken.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.full(10, np.finfo(np.float32).max, np.float32), "b")
    )
    weights = np.full((10, 64), np.finfo(np.float32).max, np.float32)
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "W"))
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(CannotCertify):
        run(open_model(ModelSource(tmp_path / "broken.onnx"), Preprocessing()), FakeCertifier())


def test_an_interrupt_keeps_what_is_done_and_resuming_computes_only_the_rest(model, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"20 of 30 samples.*--resume"):
        run(model, FakeCertifier(stop_at=25), batch_size=10, output=tmp_path)
    rest = FakeCertifier()
    resumed = run(model, rest, batch_size=10, output=tmp_path, resume=True)
    assert rest.seen == list(range(25, 35))
    assert resumed.samples == run(model, FakeCertifier()).samples
    with pytest.raises(KeyboardInterrupt, match="--output"):
        run(model, FakeCertifier(stop_at=25))


def test_resuming_a_finished_run_computes_nothing(model, tmp_path):
    run(model, FakeCertifier(), output=tmp_path)
    before = (tmp_path / "samples.jsonl").read_text()
    again = FakeCertifier()
    run(model, again, output=tmp_path, resume=True)
    assert again.seen == []
    assert (tmp_path / "samples.jsonl").read_text() == before


def test_errors_are_computed_again_when_resuming(model, tmp_path):
    run(model, FakeCertifier(bad={7}), output=tmp_path)
    again = FakeCertifier()
    assert run(model, again, output=tmp_path, resume=True).summary["verdicts"] == {"certified": 30}
    assert again.seen == [7]


def test_shards_spend_the_failure_probability_of_the_whole_run(model):
    fakes = [FakeCertifier() for _ in range(4)]
    for number, fake in enumerate(fakes, start=1):
        result = run(model, fake, shard=Shard(number, 4))
        assert (fake.samples, fake.shards) == (len(CHOSEN), 4)
        assert result.certificate.data["shard"] == f"{number}/4"
    assert sorted(index for fake in fakes for index in fake.seen) == list(CHOSEN)
    with pytest.raises(UsageError, match="fewer shards"):
        run(model, FakeCertifier(), shard=Shard(31, 31))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"options": Options(eps=OPTIONS.eps, seed=1)}, r"--seed \(not given, now 1\)"),
        (
            {"options": Options(eps=OPTIONS.eps, deployed="real")},
            r"--deployed \(float32, now real\)",
        ),
        ({"options": Options(eps=(Epsilon.parse("0.10"),))}, "--eps"),
        ({"indices": CHOSEN[:-1]}, "choice of samples .--limit"),
        ({"model": Preprocessing(mean=(0.01,))}, r"--mean \(not given, now "),
    ],
)
def test_a_journal_is_not_continued_under_other_conditions(model, path, tmp_path, change, field):
    run(model, FakeCertifier(), output=tmp_path)
    if "model" in change:
        change = {"model": open_model(ModelSource(path), change["model"])}
    arguments = {"model": model, "fake": FakeCertifier()} | change
    with pytest.raises(UsageError, match=f"another {field}"):
        run(**arguments, output=tmp_path, resume=True)


def test_an_estimate_that_claims_a_certificate_is_never_shown(model, tmp_path):
    with pytest.raises(InternalError, match="mixed"):
        run(model, FakeCertifier(), options=ESTIMATE, output=tmp_path)
    assert not (tmp_path / "certificate.json").exists()
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


def test_the_certificate_names_no_folder_and_no_machine(model, tmp_path):
    text = json_file.certificate_text(run(model, FakeCertifier(), output=tmp_path).certificate)
    assert "means.onnx" in text
    for secret in (str(tmp_path), str(Path.home()), platform.node()):
        assert secret not in text


def test_the_files_are_those_of_the_result(model, tmp_path):
    result = run(model, FakeCertifier(), output=tmp_path / "new")
    certificate, samples = json_file.paths(tmp_path / "new")
    assert json.loads(certificate.read_text())["summary"] == result.summary
    lines = samples.read_text().splitlines()
    assert tuple(Sample.from_json(json.loads(line)) for line in lines) == result.samples
    assert hashlib.sha256(samples.read_bytes()).hexdigest() == result.certificate.samples_sha256


def kept(folder: Path, suffix: str = "") -> list[int]:
    """The indices of the counterexamples there, whose images are checked."""
    with np.load(folder / f"counterexamples{suffix}.npz") as arrays:
        index, image = arrays["index"], arrays["image"]
    assert image.dtype == np.float32
    assert image.shape == (len(index), 1, 8, 8)
    for i, one in zip(index, image, strict=True):
        assert np.array_equal(one, point(int(i)))
    return index.tolist()


def test_counterexamples_are_kept_where_they_are_asked_for(model, tmp_path):
    run(model, FakeCertifier(broken={7, 30}), output=tmp_path)
    assert not (tmp_path / "counterexamples.npz").exists()
    some = {"output": tmp_path, "overwrite": True, "save_counterexamples": True}
    run(model, FakeCertifier(broken={30, 7}), indices=CHOSEN[::-1], **some)
    assert kept(tmp_path) == [30, 7]
    # None is an answer too, and what an earlier run left goes.
    run(model, FakeCertifier(), **some)
    assert kept(tmp_path) == []
    run(model, FakeCertifier(broken={7}), output=tmp_path, overwrite=True)
    assert not (tmp_path / "counterexamples.npz").exists()


def test_counterexamples_outlive_an_interrupt(model, tmp_path):
    asked = {"batch_size": 10, "output": tmp_path, "save_counterexamples": True}
    with pytest.raises(KeyboardInterrupt):
        run(model, FakeCertifier(stop_at=25, broken={7, 30}), **asked)
    rest = FakeCertifier(broken={7, 30})
    run(model, rest, **asked, resume=True)
    assert rest.seen == list(range(25, 35))
    assert kept(tmp_path) == [7, 30]
    text = (tmp_path / "samples.jsonl").read_text()
    assert "counterexample" not in text


def test_counterexamples_that_were_not_kept_are_sought_again(model, tmp_path):
    run(model, FakeCertifier(broken={7, 30}), output=tmp_path)
    again = FakeCertifier(broken={7, 30})
    run(model, again, output=tmp_path, resume=True, save_counterexamples=True)
    assert again.seen == [7, 30]
    assert kept(tmp_path) == [7, 30]


def test_shards_keep_their_counterexamples_and_the_whole_gathers_them(model, tmp_path):
    for number in (1, 2):
        run(model, FakeCertifier(broken={7, 30}), output=tmp_path, shard=Shard(number, 2),
            save_counterexamples=True)  # fmt: skip
        assert kept(tmp_path, f".{number}-of-2") == [[7], [30]][number - 1]
    gathered = FakeCertifier()
    run(model, gathered, output=tmp_path, resume=True, save_counterexamples=True)
    assert gathered.seen == []
    assert kept(tmp_path) == [7, 30]


def test_counterexamples_need_a_folder_and_an_attack(model, tmp_path):
    with pytest.raises(UsageError, match="--output"):
        run(model, FakeCertifier(), save_counterexamples=True)
    local = Options(eps=OPTIONS.eps, method="local")
    with pytest.raises(UsageError, match="--method auto"):
        run(model, FakeCertifier(), options=local, output=tmp_path, save_counterexamples=True)


@pytest.mark.parametrize("options", [OPTIONS, ESTIMATE])
def test_a_terminal_sees_progress_and_a_pipe_sees_none(options):
    shown = {}
    for terminal in (True, False):
        console = Console(force_terminal=terminal, record=True, stderr=True, width=120)
        with ConsoleWatch(console) as watch:
            watch.start(4, [], estimate=options.estimate)
            watch.say("not verbose")
            pixels = torch.from_numpy(DIGITS.pixels(np.arange(2)))
            fake = FakeCertifier().make(
                None,
                options,
                samples=2,
                shards=1,
                device="cpu",
                softmax=False,
                counterexamples=None,
                reach=None,
                file=None,
                key=None,
            )
            watch.advance(fake(pixels, DIGITS.labels[:2], [0, 1]))
        shown[terminal] = console.export_text()
    assert "2/4" in shown[True]
    assert ("ESTIMATED" if options.estimate else "2 certified") in shown[True]
    assert shown[False] == ""
