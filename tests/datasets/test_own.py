"""Data sets of one's own: the same images from an .npz file, Parquet files and folders; one clear message for each mistake."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cu_ray import plugins
from cu_ray.errors import UserError
from cu_ray.types import Images
from tests.datasets import own

KINDS = [("npz", "images.npz"), ("parquet", "images.parquet"), ("image_folder", "pictures")]


def data(name, place, **settings):
    field = "folder" if name == "image_folder" else "file"
    return plugins.find("datasets", name)(**{field: str(place)}, **settings)


def assert_is(loaded, train, test, names=own.NAMES):
    assert loaded.class_names == names
    for found, expected in ((loaded.train, train), (loaded.test, test)):
        assert found.pixels.dtype == np.uint8
        assert found.labels.dtype == np.int64
        assert np.array_equal(found.pixels, expected.pixels)
        assert np.array_equal(found.labels, expected.labels)


# ------------------------------------------------------------------------------------------------------ what is read


def test_npz(tmp_path):
    assert_is(data("npz", own.write_npz(tmp_path / "a.npz")).load(), own.TRAIN, own.TEST)


def test_npz_in_other_forms(tmp_path):
    grey = [Images(images.pixels[..., :1], images.labels) for images in (own.TRAIN, own.TEST)]
    plain = own.write_npz(
        tmp_path / "a.npz",
        train_pixels=np.asfortranarray(grey[0].pixels[..., 0]),
        test_pixels=grey[1].pixels[..., 0],
        train_labels=own.TRAIN.labels.astype(np.uint8),
        class_names=None,
    )
    assert_is(data("npz", plain).load(), *grey, names=("0", "1", "2"))
    np.savez_compressed(tmp_path / "b.npz", **own.arrays())
    assert_is(data("npz", tmp_path / "b.npz").load(), own.TRAIN, own.TEST)


def test_npz_is_read_in_blocks(tmp_path, monkeypatch):
    from cu_ray.datasets import npz

    monkeypatch.setattr(npz, "BLOCK_BYTES", 1000)  # four images
    assert_is(data("npz", own.write_npz(tmp_path / "a.npz")).load(), own.TRAIN, own.TEST)


def test_npz_may_say_how_it_is_normalised(tmp_path):
    path = own.write_npz(tmp_path / "a.npz", mean=np.array([0.1, 0.2, 0.3]), std=np.array([1, 2, 3]))
    normalisation = data("npz", path).load().normalisation
    assert (normalisation.mean, normalisation.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_the_normalisation_is_that_of_the_training_pixels(tmp_path):
    pixels = own.TRAIN.pixels.copy()
    pixels[..., 2] = 7
    normalisation = data("npz", own.write_npz(tmp_path / "a.npz", train_pixels=pixels)).load().normalisation
    scaled = pixels.reshape(-1, 3) / 255
    assert normalisation.mean == pytest.approx(scaled.mean(axis=0), abs=1e-6)
    assert normalisation.std[:2] == pytest.approx(scaled.std(axis=0)[:2], abs=1e-6)
    assert normalisation.std[2] == 1  # a channel of one value


@pytest.mark.parametrize("test", ["test", "val"])
def test_image_folder(tmp_path, test):
    loaded = data("image_folder", own.write_folder(tmp_path / "pictures", test)).load()
    assert_is(loaded, own.in_order(own.TRAIN), own.in_order(own.TEST))


def test_what_programs_keep_beside_pictures_is_no_picture(tmp_path):
    place = own.write_folder(tmp_path / "a")
    before = data("image_folder", place).load().content_hash
    picture = next((place / "train" / "ant").glob("*.png"))
    for name in (".thumbnails/1.png", "@eaDir/1.png", "@eaDir/1.jpg/2.png", ".ipynb_checkpoints/deep/1.png", ".1.png"):
        (place / "train" / "ant" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "train" / "ant" / name).write_bytes(picture.read_bytes())
    for name in ("train/@eaDir/1.png", "test/.cache/1.png", "train/bee/0.jpg/note.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(picture.read_bytes())
    assert data("image_folder", place).facts().num_train == 12
    assert data("image_folder", place).load().content_hash == before


def test_pictures_can_be_resized_and_grey(tmp_path):
    place = own.write_folder(tmp_path / "pictures")
    Image.new("RGB", (40, 20), (10, 200, 30)).save(place / "train" / "ant" / "larger.jpg")
    small = data("image_folder", place, side=4, grey=True)
    assert small.load().image_shape == small.facts().image_shape == (4, 4, 1)
    assert abs(int(small.load().train.pixels[4].mean()) - (10 * 299 + 200 * 587 + 30 * 114) // 1000) <= 2


@pytest.mark.parametrize("columns", [{}, {"names": True}, {"struct": True}])
def test_parquet(tmp_path, columns):
    path = own.write_parquet(tmp_path / "a.parquet", own.table(**columns))
    assert_is(data("parquet", path).load(), own.TRAIN, own.TEST, own.NAMES if "names" in columns else ("0", "1", "2"))


def test_parquet_with_parts_mixed_and_columns_of_other_names(tmp_path):
    order = np.random.default_rng(0).permutation(18)
    mixed = own.table(names=True).take(pa.array(order)).rename_columns(["img", "fine_label", "part"])
    loaded = data(
        "parquet", own.write_parquet(tmp_path / "a.parquet", mixed), image="img", label="fine_label", split="part"
    ).load()
    train = order[order < 12]
    assert_is(loaded, Images(own.TRAIN.pixels[train], own.TRAIN.labels[train]), Images(*_rows(own.TEST, order[order >= 12] - 12)))


def _rows(images, rows):
    return images.pixels[rows], images.labels[rows]


def test_parquet_in_the_hugging_face_layout(tmp_path):
    assert_is(data("parquet", own.write_hugging_face(tmp_path / "hub")).load(), own.TRAIN, own.TEST)


def test_parquet_files_in_folders_of_their_parts(tmp_path):
    for part in ("train", "validation"):
        written = own.table(names=True, split=False, parts=("train" if part == "train" else "test",))
        own.write_parquet(tmp_path / "hub" / part / "0000.parquet", written)
    assert_is(data("parquet", tmp_path / "hub").load(), own.TRAIN, own.TEST)


def test_the_content_hash_is_the_same_from_everywhere(tmp_path):
    train, test = own.in_order(own.TRAIN), own.in_order(own.TEST)
    own.write_npz(tmp_path / "images.npz", **own.arrays(train, test))
    own.write_parquet(tmp_path / "images.parquet", own.table(train, test, names=True))
    own.write_folder(tmp_path / "pictures")
    assert len({data(name, tmp_path / place).load().content_hash for name, place in KINDS}) == 1


# ---------------------------------------------------------------------------------------------- settings and the cache


@pytest.mark.parametrize(("name", "place"), KINDS)
def test_paths_are_the_user_s(name, place, tmp_path, monkeypatch):
    own.write_all(tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    hashes = {data(name, path).load().content_hash for path in (place, f"~/{place}", tmp_path / "home" / place)}
    assert len(hashes) == 1
    assert data(name, place).is_here()


@pytest.mark.parametrize(("name", "place"), KINDS)
def test_augmentation_is_what_was_asked_for_and_else_none(name, place, tmp_path):
    own.write_all(tmp_path)
    plain, asked = data(name, tmp_path / place).load(), data(name, tmp_path / place, crop_padding=3, flip=True).load()
    assert (plain.augmentation.crop_padding, plain.augmentation.flip) == (0, False)
    assert (asked.augmentation.crop_padding, asked.augmentation.flip) == (3, True)
    assert replace(asked, augmentation=plain.augmentation).content_hash == plain.content_hash != asked.content_hash


@pytest.mark.parametrize(("name", "place"), KINDS)
def test_the_second_load_reads_the_cache_and_a_changed_file_is_read_again(name, place, tmp_path):
    own.write_all(tmp_path)
    before = data(name, tmp_path / place).load()
    files = [path for path in [tmp_path / place, *(tmp_path / place).rglob("*")] if path.is_file()]
    for path in files:  # what only the cache can still give
        status = path.stat()
        path.write_bytes(b"0" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = data(name, tmp_path / place).load()
    assert again.content_hash == before.content_hash
    assert (again.class_names, again.normalisation) == (before.class_names, before.normalisation)
    os.utime(files[-1], ns=(0, 0)) if name != "image_folder" else [os.utime(path, ns=(0, 0)) for path in files]
    with pytest.raises(UserError):
        data(name, tmp_path / place).load()


@pytest.mark.parametrize(("name", "place"), KINDS[1:])
def test_settings_that_change_the_pixels_are_told_apart(name, place, tmp_path):
    own.write_all(tmp_path)
    settings = ({}, {"side": 4}, {"side": 5}, {"grey": True})
    shapes = [data(name, tmp_path / place, **each).load().image_shape for each in settings]
    assert shapes == [(8, 10, 3), (4, 4, 3), (5, 5, 3), (8, 10, 1)]


@pytest.mark.parametrize(("name", "place"), KINDS)
def test_facts_read_no_images(name, place, tmp_path, monkeypatch):
    own.write_all(tmp_path)
    monkeypatch.setattr("cu_ray.datasets._pictures.Look.pixels", None)
    monkeypatch.setattr("cu_ray.datasets._cache.kept", None)
    facts = data(name, tmp_path / place).facts()
    assert (facts.num_train, facts.num_test, facts.image_shape, facts.class_names) == (12, 6, (8, 10, 3), own.NAMES)


@pytest.mark.parametrize(("name", "place"), KINDS)
def test_neither_facts_nor_images_need_torch(name, place, tmp_path):
    own.write_all(tmp_path)
    code = (
        "import sys\nfrom cu_ray import plugins\n"
        f"mine = plugins.find('datasets', {name!r})({str(tmp_path / place)!r})\n"
        "assert mine.facts().num_train == len(mine.load().train) == 12\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------------- mistakes

X, Y = own.TRAIN.pixels, own.TRAIN.labels
NPZ_MISTAKES = [
    ({"train_labels": None}, "has no train_labels (it has train_pixels, test_pixels, test_labels, class_names)"),
    ({"train_pixels": X.astype(np.float32) / 255}, "has train_pixels of type float32: uint8 is needed"),
    ({"train_pixels": X[0]}, "8, 10, 3)"),
    ({"train_pixels": X.reshape(-1)}, "[N, H, W, C] or [N, H, W] is needed"),
    ({"train_pixels": X[:0], "train_labels": Y[:0]}, "[N, H, W, C] or [N, H, W] is needed"),
    ({"train_pixels": X.transpose(0, 3, 1, 2)}, "channels come last"),
    ({"test_pixels": own.TEST.pixels[:, :7]}, "train_pixels are images of (8, 10, 3), test_pixels of (7, 10, 3)"),
    ({"train_labels": Y[:-1]}, "has 12 train_pixels, but 11 train_labels"),
    ({"train_labels": Y.astype(float)}, "has train_labels of type float64"),
    ({"train_labels": Y[:, None]}, "shape (12, 1): integers [N] are needed"),
    ({"train_labels": Y - 1}, "train labels must be 0 to 2, a class each; number"),
    ({"test_labels": np.full(6, 3)}, "test labels must be 0 to 2, a class each; number 0 is 3"),
    ({"train_labels": np.minimum(Y, 1)}, "class 'cat' has no train images"),
    ({"test_labels": np.zeros(6, int)}, "class 'bee' (and 1 more) has no test images"),
    ({"train_labels": Y * 2, "class_names": None}, "class '1' (and 1 more) has no train images"),
    ({"class_names": np.array(["one", "one", "two"])}, "two or more of different names"),
    ({"class_names": np.array(["one"]), "train_labels": Y * 0, "test_labels": own.TEST.labels * 0}, "the classes are one:"),
    ({"class_names": np.array([1, 2, 3])}, "has class_names of type int64"),
    ({"class_names": np.array(["a", 1, None], dtype=object)}, "has class_names that cannot be read: Object arrays"),
    ({"train_labels": Y.astype(object)}, "has train_labels that cannot be read: Object arrays"),
    ({"mean": np.zeros(3)}, "has mean alone: give mean and std"),
    ({"mean": np.zeros(1), "std": np.ones(3)}, "needs 3 finite numbers"),
    ({"mean": np.zeros(3), "std": np.zeros(3)}, "needs 3 finite numbers"),
    ({"mean": np.full(3, np.nan), "std": np.ones(3)}, "needs 3 finite numbers"),
    ({"mean": np.full(3, 125.5), "std": np.full(3, 63.0)}, "they are of pixels between 0 and 1, so divide by 255"),
    ({"mean": np.full(3, -0.1), "std": np.ones(3)}, "they are of pixels between 0 and 1"),
    ({"test_labels": np.array([0, 0, 0, 1, 1, 2])}, "class 'cat' has a single test image: every class needs two"),
]


@pytest.mark.parametrize(("changes", "message"), NPZ_MISTAKES)
def test_a_mistake_in_an_npz_file(changes, message, tmp_path):
    assert_both_say(data("npz", own.write_npz(tmp_path / "a.npz", **changes)), message, str(tmp_path / "a.npz"))


def test_no_npz_file(tmp_path):
    assert_both_say(data("npz", tmp_path / "a.npz"), "does not exist: an .npz file with train_pixels", str(tmp_path))
    (tmp_path / "a.npz").write_bytes(b"nothing of the kind")
    assert_both_say(data("npz", tmp_path / "a.npz"), "File is not a zip file", str(tmp_path))
    assert_both_say(data("npz", tmp_path), "is needed", str(tmp_path))


def assert_both_say(dataset, *messages):
    """Facts and load both raise one UserError that says so."""
    for ask in (dataset.facts, dataset.load):
        with pytest.raises(UserError) as caught:
            ask()
        for message in messages:
            assert message in str(caught.value)
    assert not [path for path in Path.home().glob(".cache/cu-ray/datasets/*") if path.is_dir()]


def test_mistakes_in_an_image_folder(tmp_path):
    assert_both_say(data("image_folder", tmp_path / "nothing"), "does not exist: a folder with train/CLASS/*.jpg")
    assert_both_say(data("image_folder", tmp_path), "has no folder train: a folder with train/CLASS/*.jpg")
    place = own.write_folder(tmp_path / "a")
    (place / "test").rename(place / "exam")
    assert_both_say(data("image_folder", place), "has no folder test or val")
    place = own.write_folder(tmp_path / "b")
    (place / "train" / "dog").mkdir()
    assert_both_say(data("image_folder", place), "class 'dog' is in the training set only")
    (place / "test" / "dog").mkdir()
    assert_both_say(data("image_folder", place), "class 'dog' has no train images")
    for path in (place / "train").rglob("*.png"):
        path.unlink()
    assert_both_say(data("image_folder", place), "has no pictures (.jpg,")


def test_pictures_that_cannot_be_used(tmp_path):
    place = own.write_folder(tmp_path / "a")
    picture = sorted((place / "test" / "cat").glob("*.png"))[-1]
    for content, message in (
        (own.png(own.TRAIN.pixels[0, :5]), "is 10 x 5 pixels, others are 10 x 8: `side` makes them alike"),
        (b"no picture", "is not a picture that can be read"),
        (own.png(own.TRAIN.pixels[0])[:-100], "is damaged"),
        (deep(), "has more than 8 bits a channel"),
    ):
        picture.write_bytes(content)
        with pytest.raises(UserError) as caught:
            data("image_folder", place).load()
        assert f"{picture} {message}" in str(caught.value)


def deep() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 10), 60_000, dtype=np.uint16)).save(stream, "PNG")
    return stream.getvalue()


def changed(column, values, **kind):
    table = own.table(**kind)
    return table.set_column(table.schema.names.index(column), column, [values])


NUMBERS = [0, 1, 2] * 6
PARQUET_MISTAKES = [
    (own.table().drop_columns(["label"]), "has no column 'label'. Allowed: image, split."),
    (
        own.table().rename_columns(["imaged", "label", "split"]),
        "has no column 'image'. Allowed: imaged, label, split. Did you mean 'imaged'?",
    ),
    (changed("image", NUMBERS), "column 'image' is int64: PNG or JPEG bytes"),
    (changed("label", [float(number) for number in NUMBERS]), "column 'label' is double: an integer or a text"),
    (changed("label", [None, *NUMBERS[1:]]), "with 1 nulls"),
    (changed("label", [number + 1 for number in NUMBERS]), "class '0' has no train images"),
    (changed("label", ["a"] * 12 + ["b"] * 6), "class 'b' has no train images"),
    (changed("split", ["train"] * 18), "the parts are called train: a Parquet file"),
    (changed("split", ["learn"] * 18), "the parts are called learn: a Parquet file"),
    (own.table(split=False), "the parts are called nothing: a Parquet file"),
    (changed("image", [None] * 18), "column 'image' is null"),
]


@pytest.mark.parametrize(("table", "message"), PARQUET_MISTAKES)
def test_a_mistake_in_a_parquet_file(table, message, tmp_path):
    assert_both_say(data("parquet", own.write_parquet(tmp_path / "a.parquet", table)), message, str(tmp_path))


def test_a_row_without_its_picture(tmp_path):
    pictures = own.table(struct=True).column("image").to_pylist()
    pictures[15]["bytes"] = None
    path = own.write_parquet(tmp_path / "a.parquet", changed("image", pictures, struct=True))
    with pytest.raises(UserError, match="row 15 has no image bytes"):
        data("parquet", path).load()
    pictures[15]["bytes"] = b"no picture"
    path = own.write_parquet(tmp_path / "b.parquet", changed("image", pictures, struct=True))
    with pytest.raises(UserError, match=r"b.parquet: the image of row 15 is not a picture"):
        data("parquet", path).load()


def test_no_parquet_file(tmp_path):
    assert_both_say(data("parquet", tmp_path / "a.parquet"), "does not exist: a Parquet file with a column")
    (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
    assert_both_say(data("parquet", tmp_path / "a.parquet"), "is no Parquet file")
    (tmp_path / "empty").mkdir()
    assert_both_say(data("parquet", tmp_path / "empty"), "has no *.parquet")
    mixed = own.write_hugging_face(tmp_path / "mixed")
    pq.write_table(own.table(names=True, split=False, parts=("test",)), mixed / "test-00001-of-00002.parquet")
    assert_both_say(data("parquet", mixed), "column 'label' holds texts in some files and integers in others")


def test_a_damaged_archive_is_one_message(tmp_path):
    path = tmp_path / "mine.npz"
    rng = np.random.default_rng(0)
    arrays = {f"{part}_pixels": rng.integers(0, 256, (4000, 8, 8), dtype=np.uint8) for part in ("train", "test")}
    np.savez(path, **arrays, train_labels=np.arange(4000) % 2, test_labels=np.arange(4000) % 2)
    content = bytearray(path.read_bytes())
    place = content.find(arrays["train_pixels"].tobytes()[-64:])
    content[place + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="Bad CRC-32") as caught:
        plugins.find("datasets", "npz")(file=str(path), cache=str(tmp_path / "cache")).load()
    assert str(path) in str(caught.value)


def test_a_relative_path_is_kept_as_an_absolute_one(tmp_path, monkeypatch):
    """A trial is made again from another folder."""
    monkeypatch.chdir(tmp_path)
    for name, setting in (("npz", "file"), ("parquet", "file"), ("image_folder", "folder")):
        dataset = plugins.find("datasets", name)(**{setting: "mine"})
        assert plugins.describe(dataset)[setting] == str(tmp_path / "mine")
