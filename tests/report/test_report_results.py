import numpy as np
import pytest
from report import made

from lipcert.certificate import Sample
from lipcert.errors import CannotCertify, UsageError
from lipcert.report import thumbnails
from lipcert.report.reading import read_results


def test_a_folder_and_its_certificate_are_read_alike(tmp_path):
    saved = made.full()
    folder = made.save(tmp_path / "run", saved)
    for path in (folder, folder / "certificate.json"):
        found = read_results(path)
        assert found.certificate == saved.certificate
        assert found.samples == saved.samples
        assert set(found.digests) == {"certificate.json", "samples.jsonl"}
        assert list(found.images) == list(saved.images)[: thumbnails.MOST]
        assert found.counterexamples.keys() == saved.counterexamples.keys()


def test_a_shard_is_read_with_its_own_samples(tmp_path):
    results = made.plain()
    results.certificate["data"] |= {"shard": "1/2", "size": 600, "chosen": 600}
    folder = made.save(tmp_path, results)
    for name in ("certificate.json", "samples.jsonl"):
        stem, _, end = name.partition(".")
        (folder / name).rename(folder / f"{stem}.1-of-2.{end}")
    thumbnails.write(folder, [of(0, 0.1)], lambda i: np.zeros((len(i), 1, 4, 4)), suffix=".1-of-2")
    shard = read_results(folder / "certificate.1-of-2.json")
    assert (len(shard.samples), list(shard.images)) == (300, [0])
    with pytest.raises(UsageError, match=r"certificate\.1-of-2\.json of a shard.*--resume"):
        read_results(folder)


def test_nothing_to_read_is_said_with_a_remedy(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder; name the --output"):
        read_results(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"holds no certificate\.json; name the --output"):
        read_results(tmp_path)


def of(index: int, radius: float, verdict: str = "unknown", prediction: int = 1) -> Sample:
    return Sample(index, 1, prediction, verdict, 1.0, radius, 1.0, "local", 0.1)


def test_the_worst_the_best_and_the_falsified_are_chosen_and_written(tmp_path):
    samples = [of(i, radius=i / 100) for i in range(40)]
    samples[20] = of(20, 0.2, "falsified")
    samples[0] = of(0, 0.0, "misclassified", prediction=2)
    chosen = thumbnails.chosen(samples)
    assert chosen == [*range(1, 9), 20, *range(32, 40)]

    def pixels(index):
        assert index.dtype == np.int64
        return np.broadcast_to(index[:, None, None, None] / 100, (len(index), 3, 8, 8))

    thumbnails.write(tmp_path, samples, pixels)
    found = thumbnails.read_images(tmp_path / "thumbnails.npz")
    assert list(found) == chosen
    assert found[39].shape == (3, 8, 8)
    assert (found[39] == round(0.39 * 255)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["thumbnails.npz"]


def test_features_have_no_picture_and_an_older_one_goes(tmp_path):
    (tmp_path / "thumbnails.npz").write_bytes(b"old")
    thumbnails.write(tmp_path, [of(0, 0.1)], lambda index: np.zeros((len(index), 64)))
    assert list(tmp_path.iterdir()) == []
    thumbnails.write(tmp_path, [], lambda index: np.zeros((len(index), 1, 8, 8)))
    assert list(tmp_path.iterdir()) == []


def test_large_images_become_means_of_blocks(tmp_path):
    image = np.zeros((1, 1, 200, 150), np.float32)
    image[..., :100, :] = 1
    np.savez(tmp_path / "counterexamples.npz", index=[3], image=image)
    (small,) = thumbnails.read_images(tmp_path / "counterexamples.npz").values()
    assert small.shape == (1, 50, 37)
    assert (small[:, :25] == 255).all()
    assert (small[:, 25:] == 0).all()


def test_no_more_is_read_than_a_report_shows(tmp_path, monkeypatch):
    number = 40 * thumbnails.MOST
    points = {i: np.full((3, 16, 16), i / number, np.float32) for i in range(number)}
    thumbnails.write_counterexamples(tmp_path, points, (3, 16, 16), dict.fromkeys(points, 4))
    taken = []
    real = np.frombuffer
    monkeypatch.setattr(np, "frombuffer", lambda b, d: taken.append(len(b)) or real(b, d))
    found = thumbnails.read_images(tmp_path / "counterexamples.npz")
    assert list(found) == list(range(thumbnails.MOST))
    assert sum(taken) == thumbnails.MOST * (8 + 4 * 3 * 16 * 16)
    assert (found[5] == round(5 / number * 255)).all()
    thumbnails.write_counterexamples(tmp_path, {}, (3, 16, 16), {})
    assert thumbnails.read_images(tmp_path / "counterexamples.npz") == {}


@pytest.mark.parametrize(
    "image", [np.array(1.0), np.array([None]), np.asfortranarray(np.ones((2, 1, 4, 4)))]
)
def test_arrays_that_are_no_rows_of_images_are_refused(tmp_path, image):
    path = tmp_path / "thumbnails.npz"
    np.savez(path, index=[1, 2], image=image)
    with pytest.raises(CannotCertify, match=r"thumbnails\.npz: .*remove it"):
        thumbnails.read_images(path)


def test_a_damaged_image_file_is_named(tmp_path):
    path = tmp_path / "thumbnails.npz"
    for content in (b"no zip", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(CannotCertify, match=r"thumbnails\.npz: .*remove it"):
            thumbnails.read_images(path)
    np.savez(path, index=[1])
    with pytest.raises(CannotCertify, match="remove it"):
        thumbnails.read_images(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(channels):
    import base64
    import io

    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (channels, 9, 7), dtype=np.uint8)
    kind, content = thumbnails.data_uri(image).split(",")
    assert kind == "data:image/png;base64"
    opened = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert (opened.reshape(9, 7, channels) == np.moveaxis(image, 0, 2)).all()


def test_what_tests_make_is_what_the_schemas_describe():
    import jsonschema

    from lipcert.report import json_file

    for results in (made.full(20), made.plain(20), made.estimated(20)):
        jsonschema.validate(results.certificate, json_file.schema("certificate"))
        for sample in results.samples:
            jsonschema.validate(sample, json_file.schema("sample"))
