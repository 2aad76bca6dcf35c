"""Data and models as people have them, through the command, against what is right for each."""

import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from forging import claimed, opened, refit, save
from lipcert_process import lipcert_process
from onnx import TensorProto, helper, numpy_helper

from lipcert.cli.main import main
from lipcert.data import load_dataset
from lipcert.errors import UsageError
from lipcert.report import json_file

RANDOM = np.random.default_rng(0)
START = RANDOM.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers():
    """Every test draws the same, whatever ran before."""
    RANDOM.bit_generator.state = START


def save_nearest(path: Path, points: np.ndarray, shape: tuple[int, ...], front=()) -> Path:
    """The classifier by the nearest of the points (K, n), for input of this shape; ``front``:
    (operator, constant) pairs that come first."""
    points = points.reshape(len(points), -1).astype(np.float32)
    constants = {"w": points, "b": -(points**2).sum(1) / 2}
    nodes, value = [], "x"
    for number, (operator, constant) in enumerate(front):
        constants[f"c{number}"] = np.asarray(constant, np.float32)
        nodes.append(helper.make_node(operator, [value, f"c{number}"], [f"v{number}"]))
        value = f"v{number}"
    nodes += [
        helper.make_node("Flatten", [value], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "nearest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", len(points)])],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def certify(tmp_path, monkeypatch, capsys):
    """``certify(*options)``: the certificate, checked against its schema, or the error's text."""
    monkeypatch.chdir(tmp_path)

    def run(*options):
        common = ["--threads", "1", "--workers", "1", "--quiet", "--json"]
        method = [] if "--method" in options else ["--method", "local"]
        code = main(["certify", *map(str, options), *common, *method])
        out, err = capsys.readouterr()
        if code:
            assert code in (2, 3), err
            assert len(err.strip().splitlines()) == 1, err
            return err
        record = json.loads(out)
        jsonschema.validate(record, json_file.schema("certificate"))
        return record

    return run


def clean(certificate):
    return certificate["summary"]["clean_accuracy"]


def figures(certificate):
    """The summary but the deployed errors, whose last bits follow the order of sums."""
    return certificate["summary"] | {"deployed_error": None}


def noted(certificate, text):
    return any(text in note for note in certificate["notes"])


# Folders


@pytest.fixture
def tiles(tmp_path):
    """Eleven classes in folders 0 to 10, which a model knows by these numbers."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    points = RANDOM.uniform(0.2, 0.8, (11, 1, 8, 8))
    save_nearest(tmp_path / "model.onnx", points, (1, 8, 8))
    for number, point in enumerate(points):
        (tmp_path / "tiles" / str(number)).mkdir(parents=True)
        for k in range(2):
            pixels = np.clip((point[0] + RANDOM.normal(0, 0.05, (8, 8))) * 255, 0, 255)
            image.fromarray(pixels.astype(np.uint8)).save(
                tmp_path / "tiles" / str(number) / f"{k}.png"
            )
    return tmp_path / "tiles"


def test_folders_called_by_numbers_are_in_the_order_of_numbers(tiles, certify):
    found = certify("model.onnx", "--data", "tiles", "--eps", "0.02")
    assert clean(found) == 1
    assert found["data"]["class_names"] == [str(number) for number in range(11)]


def test_a_subset_of_numbered_folders_keeps_its_numbers(tiles, certify):
    for number in (0, 1, 2, 4, 5, 6, 8):
        (tiles / str(number)).rename(tiles.parent / f"away{number}")
    found = certify("model.onnx", "--data", "tiles", "--eps", "0.02")
    assert clean(found) == 1
    assert noted(found, "3, 7, 9, … 10: these numbers are taken as the labels")


def test_folders_from_one_are_numbered_from_zero_where_the_model_has_no_more_outputs(
    tiles, certify
):
    for number in reversed(range(11)):
        (tiles / str(number)).rename(tiles / str(number + 1))
    found = certify("model.onnx", "--data", "tiles", "--eps", "0.02")
    assert clean(found) == 1
    assert noted(found, "numbered 0 to 10, in the order of these numbers")


@pytest.mark.parametrize("form", ["list", "index", "numbers", "lines"])
def test_a_file_of_classes_numbers_folders_of_names(tiles, certify, form):
    names = [f"n{(7 * k) % 11:08d}" for k in range(11)]
    for number, name in enumerate(names):
        (tiles / str(number)).rename(tiles / name)
    wrong = certify("model.onnx", "--data", "tiles", "--eps", "0.02")
    assert "--classes" in wrong
    assert "in another order" in wrong
    texts = {
        "list": json.dumps(names),
        "index": json.dumps({str(k): [name, f"tile {k}"] for k, name in enumerate(names)}),
        "numbers": json.dumps({name: k for k, name in enumerate(names)}),
        "lines": "\n".join(f"{name} tile {k}" for k, name in enumerate(names)),
    }
    Path("classes").write_text(texts[form])
    found = certify("model.onnx", "--data", "tiles", "--eps", "0.02", "--classes", "classes")
    assert clean(found) == 1
    assert found["data"]["class_names"][2].startswith(names[2])
    assert found["data"]["reading"]["labels"]


def test_other_numbers_of_classes_and_outputs_are_noted(tiles, certify):
    for number in range(3):
        (tiles / str(number)).rename(tiles / f"class {number}")
    for number in range(3, 11):
        (tiles / str(number)).rename(tiles.parent / f"away{number}")
    (tiles / "class 0" / "more").mkdir()
    (tiles / "class 0" / "0.png").rename(tiles / "class 0" / "more" / "0.PNG")
    (tiles / "class 1" / "notes.xyz").write_text("no image")
    found = certify("model.onnx", "--data", "tiles", "--eps", "0.02")
    assert found["summary"]["clean_correct"] == 6
    assert noted(found, "3 classes, the model 11 outputs")
    assert noted(found, "1 files of tiles were left out")
    assert noted(found, "class 1/notes.xyz")


def test_classes_that_a_file_does_not_name_are_named(tiles, certify):
    (tiles / "0").rename(tiles / "zero")
    Path("classes.json").write_text(json.dumps(["a", "b"]))
    said = certify("model.onnx", "--data", "tiles", "--eps", "0.02", "--classes", "classes.json")
    assert "--classes classes.json: does not name" in said


# Labels


@pytest.fixture
def squares(tmp_path):
    """Four classes, 40 images as an npz file; ``save(labels)`` writes it."""
    points = RANDOM.uniform(0.2, 0.8, (4, 1, 6, 6))
    labels = np.arange(40) % 4
    images = np.clip(points[labels] + RANDOM.normal(0, 0.05, (40, 1, 6, 6)), 0, 1)

    def save(labels, name="data.npz"):
        np.savez(tmp_path / name, images=(images * 255).astype(np.uint8), labels=labels)
        return labels

    save_nearest(tmp_path / "model.onnx", points, (1, 6, 6))
    save(labels)
    save.labels, save.points = labels, points
    return save


def test_labels_from_one_need_an_offset_and_are_told_so(squares, certify):
    squares(squares.labels + 1)
    said = certify("model.onnx", "--data", "data.npz", "--eps", "0.02")
    assert "give --label-offset -1" in said
    found = certify("model.onnx", "--data", "data.npz", "--eps", "0.02", "--label-offset", "-1")
    assert clean(found) == 1


@pytest.mark.parametrize("limit", [5, 40])
def test_a_background_class_is_recognised(squares, certify, tmp_path, limit):
    background = np.concatenate([np.full((1, 1, 6, 6), 9.0), squares.points])
    save_nearest(tmp_path / "model.onnx", background, (1, 6, 6))
    options = ("model.onnx", "--data", "data.npz", "--eps", "0.02", "--limit", limit)
    said = certify(*options)
    if limit < 20:  # too few to refuse
        assert noted(said, "give --label-offset 1")
    else:
        assert "give --label-offset 1" in said
    Path("names.txt").write_text("a\nb\nc\nd\n")
    found = certify(*options, "--label-offset", "1", "--classes", "names.txt")
    assert clean(found) == 1
    assert found["data"]["class_names"] == ["background", "a", "b", "c", "d"]


def test_a_map_takes_a_subset_of_the_classes(squares, certify):
    squares(10 + squares.labels)
    Path("map.json").write_text(json.dumps({"12": 2, "11": 1}))
    found = certify("model.onnx", "--data", "data.npz", "--eps", "0.02", "--label-map", "map.json")
    assert clean(found) == 1
    assert found["data"]["size"] == 20
    assert noted(found, "20 samples of labels that --label-map does not name are left out")
    assert found["data"]["reading"]["labels"] == {"12": 2, "11": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "needs a JSON object"),
        ('{"1": "a"}', "is sent to 'a'"),
        ('{"dog": 1}', "has no class 'dog'"),
        ('{"99": 1}', "no sample has a label"),
        ('{"1": 7}', "labels up to 7"),
    ],
)
def test_maps_that_do_not_fit_are_refused(squares, certify, text, message):
    Path("map.json").write_text(text)
    said = certify("model.onnx", "--data", "data.npz", "--eps", "0.02", "--label-map", "map.json")
    assert message in said


# Preprocessing


def test_statistics_and_a_scale_in_the_graph_go_together(certify, tmp_path):
    """As torchvision's transform_input: normalised outside, and scaled once more inside."""
    digits = load_dataset("digits", split="train")
    points = np.stack([digits.images[digits.labels == c].mean(0) for c in range(10)])
    inside = (points - 0.3) / 0.4 * 0.8 - 0.4
    save_nearest(tmp_path / "model.onnx", inside, (1, 8, 8), [("Mul", 0.8), ("Add", -0.4)])
    options = ("model.onnx", "--data", "digits", "--eps", "0.05", "--limit", "60")
    found = certify(*options, "--mean", "0.3", "--std", "0.4")
    assert clean(found) > 0.85
    assert noted(found, "the network itself begins with a scale of 0.8")
    assert noted(found, "after --mean and --std")


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "(ImageNet)"),
        ((0.5,) * 3, (0.5,) * 3, "--mean 0.5 --std 0.5"),
    ],
)
def test_a_usual_normalisation_that_is_missing_is_named(certify, tmp_path, mean, std, told):
    column = (1, 3, 1, 1)
    mean, std = np.reshape(mean, column), np.reshape(std, column)
    brightness = np.linspace(0.2, 0.8, 6).reshape(6, 1, 1, 1)
    points = brightness + RANDOM.uniform(-0.05, 0.05, (6, 3, 6, 6))
    labels = np.arange(60) % 6
    images = np.clip(points[labels] + RANDOM.normal(0, 0.01, (60, 3, 6, 6)), 0, 1)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    save_nearest(tmp_path / "model.onnx", (points - mean) / std, (3, 6, 6))
    options = ("model.onnx", "--data", "data.npz", "--eps", "0.02", "--allow-implausible")
    found = certify(*options)
    assert noted(found, told), found["notes"]
    assert noted(found, "no normalisation is declared")
    listed = [",".join(map(str, values.ravel())) for values in (mean, std)]
    right = certify(*options, "--mean", listed[0], "--std", listed[1])
    assert clean(right) == 1
    assert right["notes"] == []


def test_blue_first_is_declared_by_channels(certify, tmp_path):
    points = RANDOM.uniform(80, 170, (6, 3, 6, 6))
    points[:, 1:] = points[:, 1:].mean((2, 3), keepdims=True)
    labels = np.arange(60) % 6
    images = np.clip(points[labels] + RANDOM.normal(0, 6, (60, 3, 6, 6)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    np.savez(tmp_path / "blue.npz", images=images[:, ::-1], labels=labels)
    mean = np.array([104, 117, 123]).reshape(1, 3, 1, 1)
    save_nearest(tmp_path / "model.onnx", (points[:, ::-1] - mean) / 99, (3, 6, 6), [("Div", 99)])
    options = ("--eps", "0.05", "--range", "0,255", "--mean", "104,117,123", "--limit", "20")
    plain = certify("model.onnx", "--data", "data.npz", *options, "--allow-implausible")
    assert noted(plain, "with --channels bgr")
    found = certify("model.onnx", "--data", "data.npz", *options, "--channels", "bgr")
    same = certify("model.onnx", "--data", "blue.npz", *options)
    assert clean(found) == clean(same) == 1
    assert figures(found) == figures(same)
    assert found["model"]["preprocessing"]["channels"] == "bgr"
    said = certify("model.onnx", "--data", "data.npz", *options, "--layout", "BGR")
    assert "give --channels bgr" in said


def test_gray_images_are_repeated_on_request_and_eps_stays_in_gray(certify, tmp_path):
    points = RANDOM.uniform(0.2, 0.8, (4, 1, 6, 6))
    labels = np.arange(40) % 4
    images = np.clip(points[labels] + RANDOM.normal(0, 0.05, (40, 1, 6, 6)), 0, 1)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    save_nearest(tmp_path / "gray.onnx", points, (1, 6, 6))
    save_nearest(tmp_path / "rgb.onnx", np.repeat(points, 3, axis=1), (3, 6, 6))
    said = certify("rgb.onnx", "--data", "data.npz", "--eps", "0.1")
    assert "give --channels rgb to repeat the gray one" in said
    found = certify("rgb.onnx", "--data", "data.npz", "--eps", "0.1", "--channels", "rgb")
    gray = certify("gray.onnx", "--data", "data.npz", "--eps", "0.1")
    # The same function of the gray image, three times as steep: the same radii.
    for name in ("mean", "median"):
        a, b = (one["summary"]["radius"][name] for one in (found, gray))
        assert a == pytest.approx(b, rel=1e-2)


# Files


@pytest.fixture
def digits(tmp_path):
    """Fifty digits as bytes, and a model of their shape."""
    train, test = load_dataset("digits", split="train"), load_dataset("digits")
    points = np.stack([train.images[train.labels == c].mean(0) for c in range(10)])
    save_nearest(tmp_path / "model.onnx", points, (1, 8, 8))
    return (test.images[:50, 0] * 255).round().astype(np.uint8), test.labels[:50]


FORMS = {
    "medmnist": lambda x, y: {"test_images": x, "test_labels": y[:, None].astype(np.uint8),
                              "train_images": x[:3], "train_labels": y[:3, None]},
    "keras": lambda x, y: {"x_train": x[:3], "y_train": y[:3], "x_test": x, "y_test": y},
    "column": lambda x, y: {"images": x, "labels": y[:, None]},
    "one-hot": lambda x, y: {"images": x, "labels": np.eye(10, dtype=np.float32)[y]},
    "floats": lambda x, y: {"images": x.astype(np.float32), "labels": y.astype(np.float64)},
    "int64": lambda x, y: {"images": x.astype(np.int64), "labels": y},
    "positional": lambda x, y: {"arr_0": x, "arr_1": y},
    "flat": lambda x, y: {"X": x.reshape(50, -1).astype(np.float64), "y": y},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_npz_as_people_have_them(digits, certify, tmp_path, form):
    np.savez(tmp_path / "plain.npz", images=digits[0][:, None], labels=digits[1])
    np.savez(tmp_path / "own.npz", **FORMS[form](*digits))
    plain, own = (
        certify("model.onnx", "--data", name, "--eps", "0.05", "--limit", "5")
        for name in ("plain.npz", "own.npz")
    )
    assert figures(own) == figures(plain)
    assert own["threat_model"] == plain["threat_model"]


def test_keys_and_splits_are_options(digits, certify, tmp_path):
    images, labels = digits
    np.savez(tmp_path / "own.npz", fog=images, fine=labels, coarse=labels // 2)
    options = ("model.onnx", "--data", "own.npz", "--eps", "0.05", "--limit", "5")
    assert "name the one to take with --image-key" in certify(*options)
    assert "it has fog, fine, coarse" in certify(*options, "--image-key", "smoke")
    found = certify(*options, "--image-key", "fog", "--label-key", "fine")
    assert clean(found) == 0.8
    assert found["data"]["reading"]["label_key"] == "fine"
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels)
    assert "choose one with --split" in certify(*options)
    assert clean(certify(*options, "--split", "train")) == 0.8


def test_csv_npy_and_tensors(digits, certify, tmp_path):
    import torch
    from safetensors.torch import save_file

    images, labels = digits
    options = ("--eps", "0.05", "--limit", "5")
    np.savez(tmp_path / "plain.npz", images=images, labels=labels)
    plain = figures(certify("model.onnx", "--data", "plain.npz", *options))
    table = np.concatenate([labels[:, None], images.reshape(50, -1)], 1)
    np.savetxt(tmp_path / "table.csv", table, fmt="%d", delimiter=",")
    head = "label," + ",".join(f"pixel{k}" for k in range(64))
    np.savetxt(tmp_path / "head.csv", table, fmt="%d", delimiter=",", header=head, comments="")
    tensors = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}
    torch.save(tuple(tensors.values()), tmp_path / "pair.pt")
    save_file(tensors, tmp_path / "pair.safetensors")
    np.save(tmp_path / "images.npy", images)
    assert "name their file with --labels" in certify(
        "model.onnx", "--data", "images.npy", *options
    )
    np.savetxt(tmp_path / "truth.txt", labels, fmt="%d")
    found = certify("model.onnx", "--data", "images.npy", "--labels", "truth.txt", *options)
    assert figures(found) == plain
    np.save(tmp_path / "labels.npy", labels)
    for name in ("table.csv", "head.csv", "pair.pt", "pair.safetensors", "images.npy"):
        found = certify("model.onnx", "--data", name, *options)
        assert figures(found) == plain, name
        assert found["threat_model"]["space"] == "pixels [0,1]"


# Tables, signals, volumes


def spread_out(points, deviation, count=60):
    labels = np.arange(count) % len(points)
    noise = RANDOM.normal(0, 1, (count, *points.shape[1:])) * deviation
    return (points[labels] + noise).astype(np.float32), labels


def test_a_table_is_certified_in_its_own_unit(certify, tmp_path):
    points = RANDOM.normal(0, 3, (3, 5))
    values, labels = spread_out(points, 0.5)
    save_nearest(tmp_path / "model.onnx", points, (5,))
    np.savez(tmp_path / "tab.npz", x=values, y=labels)
    options = ("model.onnx", "--data", "tab.npz", "--limit", "20", "--output", "out", "--overwrite")
    own = certify(*options, "--eps", "0.3")
    assert own["threat_model"]["space"] == "the data's own unit"
    assert clean(own) == 1
    # The radius of a linear classifier is known: to the nearest of the planes between two points.
    gaps = points[:, None] - points[None]
    margins = (values[:20] @ points.T - (points**2).sum(1) / 2).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        away = (margins[np.arange(20), labels[:20]][:, None] - margins) / np.linalg.norm(
            gaps, axis=2
        )[labels[:20]]
    exact = np.where(np.isnan(away), np.inf, away).min(1)
    rows = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    radii = np.array([row["radius"] for row in rows])
    assert (radii <= exact * (1 + 1e-6)).all()
    assert radii.mean() > 0.98 * exact.mean()
    ranged = ("--data-range=-16,14", "--eps", "0.01")
    said = certify(*options, *ranged)
    assert "with --range=-16,14" in (said if isinstance(said, str) else " ".join(said["notes"]))
    scaled = certify(*options, *ranged, "--range=-16,14")
    assert scaled["threat_model"]["space"] == "the data's range as [0,1]"
    assert scaled["summary"]["certified_count"]["0.01"] == own["summary"]["certified_count"]["0.3"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["auto", "local"])
def test_radii_beyond_the_unit_cube_are_true(certify, tmp_path, dtype, method):
    points = RANDOM.normal(0, 300, (3, 4))
    values, labels = spread_out(points, 90, 12)
    save_nearest(tmp_path / "model.onnx", points, (4,))
    np.savez(tmp_path / "tab.npz", x=values, y=labels)
    found = certify("model.onnx", "--data", "tab.npz", "--eps", "20,90", "--dtype", dtype,
                    "--output", "out", "--method", method)  # fmt: skip
    squared = ((values[:, None].astype(float) - points[None]) ** 2).sum(2)
    away = squared - squared[np.arange(12), labels][:, None]
    apart = 2 * np.linalg.norm(points[labels][:, None] - points[None], axis=2)
    exact = np.where(apart > 0, away / np.where(apart > 0, apart, 1), np.inf).min(1)
    rows = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    radii = np.array([row["radius"] for row in rows])
    assert (radii <= exact.clip(min=0) * (1 + 1e-5)).all()
    assert np.median(radii) > 0.97 * np.median(exact)
    assert np.median(radii) > 20
    for eps in (20, 90):
        assert found["summary"]["certified_count"][str(eps)] <= (exact >= eps * (1 - 1e-5)).sum()
    if method == "auto":  # no attack is nearer than the exact distance
        attacks = [row.get("attack_radius", np.inf) for row in rows]
        assert (np.array(attacks) >= exact * (1 - 1e-5)).all()


def test_wide_features_have_wide_radii(certify, tmp_path):
    mean, std = np.array([13.0, 2.3, 745.0]), np.array([0.8, 1.1, 314.0])
    points = np.array([[1, -1, 1.2], [-1, -0.5, -0.7], [0, 1.3, -0.3]])
    values, labels = spread_out(points, 0.1)
    save_nearest(tmp_path / "model.onnx", points * [[0, 0, 1]], (3,))
    np.savez(tmp_path / "raw.npz", x=values * std + mean, y=labels)
    found = certify(
        "model.onnx", "--data", "raw.npz", "--eps", "20", "--limit", "20",
        "--mean", "13.0,2.3,745.0", "--std", "0.8,1.1,314.0",
    )  # fmt: skip
    assert found["summary"]["radius"]["median"] > 30


def test_signals_have_statistics_per_channel(certify, tmp_path):
    points = RANDOM.normal(0, 1, (3, 2, 32))
    values, labels = spread_out(points, 0.3)
    mean, std = np.array([[0.5], [-0.5]]), np.array([[1.0], [2.0]])
    save_nearest(tmp_path / "model.onnx", (points - mean) / std, (2, 32))
    np.savez(tmp_path / "sig.npz", images=values, labels=labels)
    options = ("model.onnx", "--data", "sig.npz", "--limit", "10")
    statistics = ("--mean", "0.5,-0.5", "--std", "1,2")
    own = certify(*options, "--eps", "0.32", *statistics)
    ranged = ("--data-range=-8,8", "--range=-8,8")
    scaled = certify(*options, "--eps", "0.02", *statistics, *ranged)
    assert clean(own) == clean(scaled) == 1
    for name in ("mean", "median"):
        a, b = (one["summary"]["radius"][name] for one in (own, scaled))
        assert a == pytest.approx(16 * b, rel=0.02)
    np.savez(tmp_path / "sig.npz", images=np.moveaxis(values, 1, 2), labels=labels)
    last = certify(*options, "--eps", "0.32", *statistics)
    assert figures(last) == figures(own)
    assert last["data"]["sha256"] == own["data"]["sha256"]


def test_volumes_are_certified(certify, tmp_path):
    points = RANDOM.uniform(0.2, 0.8, (3, 1, 4, 6, 6))
    values, labels = spread_out(points, 0.05)
    save_nearest(tmp_path / "model.onnx", points, (1, 4, 6, 6))
    np.savez(tmp_path / "vol.npz", images=values, labels=labels)
    found = certify("model.onnx", "--data", "vol.npz", "--eps", "0.05", "--limit", "10")
    assert clean(found) == 1
    assert found["threat_model"]["space"] == "the data's own unit"


def test_bands_that_could_be_anywhere_are_asked_about(certify, tmp_path):
    points = RANDOM.uniform(0.2, 0.8, (3, 6, 6, 6))
    values, labels = spread_out(points, 0.2)
    np.savez(tmp_path / "bands.npz", images=values.clip(0, 1), labels=labels)
    save_nearest(tmp_path / "model.onnx", points, (6, 6, 6))
    options = ("model.onnx", "--data", "bands.npz", "--eps", "0.02", "--limit", "10")
    assert "--data-layout nchw or --data-layout nhwc" in certify(*options)
    assert clean(certify(*options, "--data-layout", "nchw")) == 1


def test_pixels_of_a_table_are_refused(certify, tmp_path):
    np.savez(tmp_path / "tab.npz", x=RANDOM.random((30, 5)), y=np.arange(30) % 3)
    save_nearest(tmp_path / "model.onnx", RANDOM.random((3, 5)), (5,))
    said = certify("model.onnx", "--data", "tab.npz", "--eps", "0.1", "--pixel-domain")
    assert "--pixel-domain: tab.npz is no set of images" in said


def test_no_report_of_a_table_speaks_of_pixels(certify, tmp_path, capsys):
    points = RANDOM.normal(0, 3, (3, 5))
    values, labels = spread_out(points, 0.5)
    save_nearest(tmp_path / "model.onnx", points, (5,))
    np.savez(tmp_path / "tab.npz", x=values, y=labels)
    certify("model.onnx", "--data", "tab.npz", "--eps", "0.3", "--limit", "20", "--output", "out")
    for form in ("html", "markdown", "csv", "model-card"):
        assert main(["report", "out", "--format", form]) == 0
        said = capsys.readouterr().out
        assert "pixel" not in said.replace("pixelated", "").replace("pixel_domain", "")
    assert main(["report", "out", "--format", "html"]) == 0
    assert "in the data&#x27;s own unit" in capsys.readouterr().out


@pytest.mark.parametrize("options", [
    (), ("--data-range=-16,14", "--range=-16,14", "--mean", "0,0,1,0,0", "--std", "1,2,1,1,3"),
])  # fmt: skip
def test_an_audit_reads_a_table_as_it_was_read(certify, tmp_path, capsys, options):
    points = RANDOM.normal(0, 3, (3, 5))
    values, labels = spread_out(points, 0.3)
    front = [("Mul", [1, 2, 1, 1, 3]), ("Add", [0, 0, 1, 0, 0])] if options else []
    save_nearest(tmp_path / "model.onnx", points, (5,), front)
    np.savez(tmp_path / "tab.npz", fog=values, smoke=labels + 1)
    keys = ("--image-key", "fog", "--label-key", "smoke", "--label-offset", "-1")
    eps = "0.01" if options else "0.3"
    certify("model.onnx", "--data", "tab.npz", "--eps", eps, *keys, *options,
            "--limit", "8", "--output", "out")  # fmt: skip
    assert main(["audit", "out", "--data", "tab.npz", "--json", "--restarts", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"]
    assert found["counts"]["contradicted"] == 0
    jsonschema.validate(found, json_file.schema("audit"))


def test_no_radius_goes_beyond_what_is_sought(certify, tmp_path, capsys):
    points = RANDOM.normal(0, 3, (3, 5))
    values, labels = spread_out(points, 0.3)
    save_nearest(tmp_path / "model.onnx", points, (5,))
    np.savez(tmp_path / "tab.npz", x=values, y=labels)
    certify("model.onnx", "--data", "tab.npz", "--eps", "0.3", "--limit", "4", "--output", "out")
    certificate, samples = opened(tmp_path / "out")
    reach = certificate["data"]["reach"]
    assert reach == pytest.approx(np.linalg.norm(np.ptp(values, axis=0)))
    assert reach > np.sqrt(5)
    # A radius beyond the unit cube is nothing strange, one beyond the data's own box is.
    for radius, code, said in ((0.99 * reach, 0, ""), (1.01 * reach, 3, "outside the domain")):
        for sample in samples:
            claimed(sample, certificate, radius)
        save(tmp_path / "forged", refit(certificate, samples), samples)
        assert main(["report", "forged", "--format", "csv"]) == code
        assert said in capsys.readouterr().err


def test_an_audit_knows_the_unit_and_how_far_radii_are_sought(certify, tmp_path, capsys):
    points = RANDOM.normal(0, 3, (3, 5))
    values, labels = spread_out(points, 0.3)
    save_nearest(tmp_path / "model.onnx", points, (5,))
    np.savez(tmp_path / "tab.npz", x=values, y=labels)
    certify("model.onnx", "--data", "tab.npz", "--eps", "0.3", "--limit", "4", "--output", "out")
    certificate, samples = opened(tmp_path / "out")
    further = certificate | {"data": certificate["data"] | {"reach": 1e6}}
    pixels = json.loads(json.dumps(certificate))
    pixels["threat_model"]["space"] = "pixels [0,1]"
    del pixels["data"]["reach"], pixels["data"]["reading"]
    for samples_of in samples:  # within the cube, so that only the data can tell
        claimed(samples_of, certificate, 0.5)
    for forged, said in ((further, "records the reach"), (pixels, "measures radii in pixels")):
        save(tmp_path / "forged", refit(forged, samples), samples)
        assert main(["audit", "forged", "--data", "tab.npz", "--model", "model.onnx"]) == 3
        assert said in capsys.readouterr().err


def test_one_row_of_a_table_is_certified(certify, tmp_path):
    points = RANDOM.normal(0, 3, (3, 5))
    save_nearest(tmp_path / "model.onnx", points, (5,))
    np.savez(tmp_path / "tab.npz", x=points[:1].astype(np.float32), y=[0])
    found = certify("model.onnx", "--data", "tab.npz", "--eps", "0.3", "--method", "auto")
    assert found["summary"]["certified_count"] == {"0.3": 1}
    assert found["data"]["reach"] == pytest.approx(0.6)


def test_the_library_takes_what_the_command_takes(certify, tmp_path):
    import torch

    import lipcert

    points = RANDOM.normal(0, 3, (3, 5))
    values, labels = spread_out(points, 0.3, 8)
    save_nearest(tmp_path / "model.onnx", points, (5,))
    np.savez(tmp_path / "tab.npz", x=values, y=labels)
    plain = certify("model.onnx", "--data", "tab.npz", "--eps", "0.3")
    model = lipcert.load("model.onnx")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(values), torch.from_numpy(labels))
    loader = torch.utils.data.DataLoader(pairs, batch_size=3)
    for data in ("tab.npz", Path("tab.npz"), load_dataset("tab.npz"), pairs, loader,
                 {"x": values, "y": labels}):  # fmt: skip
        found = lipcert.certify(model, data, eps="0.3", method="local")
        assert found.summary["certified_count"] == plain["summary"]["certified_count"]
        assert found.certificate.data["sha256"] == plain["data"]["sha256"]
        assert found.certificate.threat_model["space"] == "the data's own unit"
    with pytest.raises(UsageError, match="give at least one radius"):
        lipcert.certify(model, values, labels)
    with pytest.raises(UsageError, match="it must return"):
        lipcert.certify(model, 3, eps="0.3")


@pytest.mark.parametrize(("data", "channels"), [(1, "rgb"), (3, "bgr"), (3, "rgb")])
def test_an_audit_knows_channels(certify, tmp_path, capsys, data, channels):
    points = RANDOM.uniform(0.2, 0.8, (3, data, 5, 5))
    values, labels = spread_out(points, 0.05)
    np.savez(tmp_path / "data.npz", images=values.clip(0, 1), labels=labels)
    seen = np.repeat(points, 3, axis=1) if data == 1 else points
    seen = seen[:, ::-1] if channels == "bgr" else seen
    mean = np.reshape([0.1, 0.2, 0.3], (1, 3, 1, 1))
    save_nearest(tmp_path / "model.onnx", seen - mean, (3, 5, 5))
    found = certify("model.onnx", "--data", "data.npz", "--eps", "0.1", "--channels", channels,
                    "--mean", "0.1,0.2,0.3", "--limit", "6", "--output", "out")  # fmt: skip
    assert clean(found) == 1
    assert main(["audit", "out", "--data", "data.npz", "--json", "--restarts", "2"]) == 0
    audited = json.loads(capsys.readouterr().out)
    assert audited["agreement"]
    assert audited["bound"] == "available"


# A user without a home


def test_nothing_is_asked_of_a_home_that_is_not_needed(digits, tmp_path):
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(
        "import pwd\ndef nobody(uid):\n    raise KeyError(f'uid not found: {uid}')\n"
        "pwd.getpwuid = nobody\n"
    )
    code = (
        "import os, sys\n"
        "for name in ('HOME', 'USER', 'LOGNAME', 'LNAME', 'USERNAME', 'XDG_CACHE_HOME'):\n"
        "    os.environ.pop(name, None)\n"
        f"sys.path.insert(0, {str(shim)!r})\n"
        "import sitecustomize, importlib; importlib.reload(sitecustomize)\n"
        "from lipcert.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "nobody.py").write_text(code)
    import subprocess

    from lipcert_process import environment

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "nobody.py", *arguments], cwd=tmp_path, capture_output=True,
            text=True, env=environment(), timeout=120, check=False,
        )  # fmt: skip

    certified = run("certify", "model.onnx", "--data", "digits", "--eps", "0.05", "--limit", "2",
                    "--workers", "1", "--quiet")  # fmt: skip
    assert (certified.returncode, certified.stderr) == (0, "")
    doctor = run("doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "no home folder" in doctor.stdout
    absent = run("certify", "model.onnx", "--data", "mnist", "--eps", "0.05")
    assert absent.returncode == 3
    assert "set XDG_CACHE_HOME" in absent.stderr


def test_the_options_are_settings_as_well(tmp_path):
    (tmp_path / "lipcert.toml").write_text('channels = "bgr"\nlabel-offset = 1\nimage-key = "x"\n')
    shown = lipcert_process("certify", "--show-config", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for line in ('channels = "bgr"', "label-offset = 1", 'image-key = "x"'):
        assert f"{line}  # lipcert.toml" in shown.stdout


def test_fine_tuning_reads_both_splits_of_a_file_and_its_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    points = RANDOM.uniform(0.2, 0.8, (4, 1, 6, 6))
    labels = np.arange(80) % 4
    images = np.clip(points[labels] + RANDOM.normal(0, 0.05, (80, 1, 6, 6)), 0, 1)
    save_nearest(tmp_path / "model.onnx", points, (1, 6, 6))
    np.savez("both.npz", train_images=images[:60], train_labels=labels[:60, None] + 1,
             test_images=images[60:], test_labels=labels[60:, None] + 1)  # fmt: skip
    options = ["finetune", "model.onnx", "--eps", "0.1", "--epochs", "1", "--batch-size", "20",
               "--quiet", "--threads", "1", "--label-offset", "-1", "--limit", "8",
               "--activation", "keep"]  # fmt: skip
    assert main([*options, "--data", "both.npz", "--output", "out"]) == 0
    record = json.loads(Path("out/recipe.json").read_text())
    assert record["data"]["trained_on"] + record["data"]["validated_with"] == 60
    assert record["results"]["after"]["n"] == 8
    assert record["results"]["before"]["clean"] == 1
    assert record["results"]["unit"] == "pixels [0,1]"
    np.savez("test.npz", images=images, labels=labels + 1)
    assert main([*options, "--data", "test.npz", "--output", "none"]) == 2
    assert "name the training images with --train-data" in capsys.readouterr().err


def test_test_images_are_numbered_as_the_training_images_were(tmp_path, monkeypatch, capsys):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    monkeypatch.chdir(tmp_path)
    points = RANDOM.uniform(0, 1, (3, 1, 6, 6))
    for split, names in (("train", "abc"), ("test", "c")):
        for name in names:
            (tmp_path / "own" / split / name).mkdir(parents=True)
            pixels = (points["abc".index(name), 0] * 255).astype(np.uint8)
            for k in range(8):
                image.fromarray(pixels).save(tmp_path / "own" / split / name / f"{k}.png")
    save_nearest(tmp_path / "model.onnx", points, (1, 6, 6))
    options = ["finetune", "model.onnx", "--eps", "0.1", "--epochs", "1", "--batch-size", "4",
               "--quiet", "--threads", "1", "--data", "own", "--output", "out",
               "--activation", "keep"]  # fmt: skip
    assert main(options) == 0, capsys.readouterr().err
    assert json.loads(Path("out/recipe.json").read_text())["results"]["before"]["clean"] == 1
