"""Folders of images: what is decoded, against Pillow and by hand; what is no example; and one list of classes."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtrain import ConfigError, Experiment
from jaxtrain.data import Damaged, ImageFolder, Pipeline, Stored, Tolerant, folder_classes
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW
from jaxtrain.runs.begin import begin
from jaxtrain.tasks import Classification

CLASSES = ("ant", "bee", "cat")


def save(path: Path, image: Image.Image | np.ndarray | int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, int):
        image = np.full((4, 4, 3), image, np.uint8)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path, **options)
    return path


def only(folder: Path, size: tuple[int, int] = (4, 4), gray: bool = False) -> np.ndarray:
    return ImageFolder(str(folder), size, gray=gray)[0]["image"]


# Pixels.


@pytest.mark.parametrize(
    ("orientation", "corners"), [(3, [[4, 3], [2, 1]]), (6, [[3, 1], [4, 2]]), (8, [[2, 4], [1, 3]])]
)
def test_the_orientation_in_the_exif_data_is_applied(tmp_path, orientation, corners):
    stored = np.kron(np.array([[1, 2], [3, 4]], np.uint8), np.ones((2, 2), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", stored, exif=exif)
    assert only(tmp_path, gray=True)[::3, ::3, 0].tolist() == corners


def test_a_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 200, 0, 7, 8, 9])
    save(tmp_path / "a.png", image)
    assert only(tmp_path, (2, 2)).tolist() == [[[255, 0, 0], [0, 200, 0]], [[7, 8, 9], [0, 200, 0]]]


def test_what_is_transparent_is_laid_over_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]], [[0, 0, 0, 51], [200, 0, 0, 255]]], np.uint8)
    save(tmp_path / "rgba" / "a.png", pixels)
    save(tmp_path / "la" / "a.png", pixels[:, :, [2, 3]])
    coded = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    coded.putpalette([255, 0, 0, 0, 200, 0])
    save(tmp_path / "palette" / "a.png", coded, transparency=1)
    # 51 / 255 of black over white: 0.8 · 255 = 204.
    assert only(tmp_path / "rgba", (2, 2)).tolist() == [
        [[10, 20, 30], [255, 255, 255]],
        [[204, 204, 204], [200, 0, 0]],
    ]
    assert only(tmp_path / "la", (2, 2), gray=True)[..., 0].tolist() == [[30, 255], [204, 0]]
    assert only(tmp_path / "palette", (2, 2)).tolist() == [
        [[255, 0, 0], [255, 255, 255]],
        [[255, 255, 255], [255, 0, 0]],
    ]


def test_gray_is_the_luma_of_bt601_and_colour_of_gray_is_gray(tmp_path):
    save(tmp_path / "rgb" / "a.png", np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8))
    save(tmp_path / "l" / "a.png", np.array([[0, 100], [200, 255]], np.uint8))
    assert only(tmp_path / "rgb", (2, 2), gray=True)[..., 0].tolist() == [[76, 150], [29, 9]]
    assert only(tmp_path / "l", (2, 2)).tolist() == [[[0] * 3, [100] * 3], [[200] * 3, [255] * 3]]


def sixteen_bits(colour: bool) -> bytes:
    """A PNG of one pixel with 16 bits a sample, as the standard lays it out."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2 if colour else 0, 0, 0, 0)
    line = zlib.compress(b"\0" + b"\x12\x34" * (3 if colour else 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", line) + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour", [False, True])
def test_sixteen_bits_a_sample_are_refused_and_the_file_is_named(tmp_path, colour):
    (tmp_path / "deep.png").write_bytes(sixteen_bits(colour))
    with pytest.raises(Damaged, match=r"deep\.png: .*16 bits a sample: save it with 8"):
        only(tmp_path)


def test_cmyk_is_refused_and_the_file_is_named_and_may_be_skipped(tmp_path):
    save(tmp_path / "a.jpg", Image.new("CMYK", (4, 4), (255, 0, 0, 0)))
    save(tmp_path / "b.png", 7)
    with pytest.raises(Damaged, match=r"a\.jpg: .*its pixels are CMYK: save it as gray or RGB"):
        only(tmp_path)
    assert int(Tolerant(ImageFolder(str(tmp_path), (4, 4)), 1)[0]["image"][0, 0, 0]) == 7


def test_what_is_predicted_from_is_decoded_as_what_is_trained_on(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    path = save(tmp_path / "a.png", rng.integers(0, 256, (6, 9, 3), np.uint8), exif=exif)
    source = ImageFolder(str(tmp_path), (5, 4))
    found = source.raw(str(path))["image"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, source[0]["image"])
    path.write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"a\.png: it is not an image"):
        source.raw(str(path))
    with pytest.raises(ConfigError, match=r"no file nowhere\.png"):
        source.raw("nowhere.png")


def test_images_are_resized_as_pillow_does(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    save(tmp_path / "a.png", pixels)
    wanted = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).resize((6, 4))
    np.testing.assert_array_equal(only(tmp_path, (4, 6)), np.asarray(wanted))


# Classes.


@pytest.fixture
def animals(tmp_path) -> Path:
    for number, name in enumerate(CLASSES):
        for i in range(4):
            save(tmp_path / "train" / name / f"{i}.png", number)
    save(tmp_path / "test" / "ant" / "1.png", 0)
    save(tmp_path / "test" / "cat" / "1.png", 2)
    return tmp_path


def labels(source: ImageFolder) -> list[tuple[int, int]]:
    return [(int(one["label"]), int(one["image"][0, 0, 0])) for one in map(source.__getitem__, range(len(source)))]


def test_a_split_that_lacks_a_class_keeps_the_numbers_of_training(animals):
    test = ImageFolder(str(animals / "test"), (4, 4), CLASSES)
    assert labels(test) == [(0, 0), (2, 2)]
    assert set(labels(replace(test, folder=str(animals / "train")))) == {(0, 0), (1, 1), (2, 2)}
    assert labels(replace(test, classes=("cat", "bee", "ant"))) == [(2, 0), (0, 2)]


def test_folders_of_images_without_classes_are_refused_with_the_line_to_write(animals):
    with pytest.raises(ConfigError, match=r"the same tuple of classes, for example classes=\('ant', 'cat'\)"):
        len(ImageFolder(str(animals / "test"), (4, 4)))
    assert folder_classes(str(animals / "train")) == CLASSES


def test_a_folder_that_is_no_class_is_named(animals):
    with pytest.raises(ConfigError, match=r"test/cat is none of the classes; did you mean 'cats'"):
        len(ImageFolder(str(animals / "test"), (4, 4), ("ant", "cats")))
    with pytest.raises(ConfigError, match="must differ"):
        ImageFolder("x", (4, 4), ("a", "a"))


@pytest.mark.parametrize("classes", [None, CLASSES, ("test", "train")])
def test_the_parent_of_splits_is_refused_with_what_to_do(animals, classes):
    with pytest.raises(ConfigError, match=r"holds the splits test, train: make one ImageFolder of each, as of .*/test"):
        len(ImageFolder(str(animals), (4, 4), classes))
    with pytest.raises(ConfigError, match="holds the splits"):
        folder_classes(str(animals))


def test_splits_without_classes_are_refused_as_splits_too(tmp_path):
    for name in ("train", "val"):
        save(tmp_path / name / "1.png")
    with pytest.raises(ConfigError, match="holds the splits train, val"):
        len(ImageFolder(str(tmp_path), (4, 4)))


def test_a_class_may_be_named_like_a_split(tmp_path):
    for name in ("exam", "test"):
        save(tmp_path / name / "1.png")
    assert labels(ImageFolder(str(tmp_path), (4, 4), ("exam", "test"))) == [(0, 0), (1, 0)]


def test_images_below_a_class_are_of_that_class_and_links_are_followed(animals, tmp_path):
    save(animals / "deep" / "ant" / "2019" / "cat" / "x.png", 9)
    (animals / "deep" / "cat").symlink_to(animals / "test" / "cat", target_is_directory=True)
    assert labels(ImageFolder(str(animals / "deep"), (4, 4), CLASSES)) == [(0, 9), (2, 2)]


def test_hidden_files_and_folders_are_neither_classes_nor_examples(animals):
    train = animals / "train"
    save(train / ".ipynb_checkpoints" / "1-checkpoint.png")
    save(train / "ant" / ".ipynb_checkpoints" / "1-checkpoint.png")
    save(train / "__MACOSX" / "ant" / "1.png")
    (train / "ant" / "._1.png").write_bytes(b"\0\5\x16\7")
    for name in (".DS_Store", "ant/Thumbs.db", "ant/.DS_Store", "labels.csv"):
        (train / name).write_bytes(b"\0")
    found = ImageFolder(str(train), (4, 4), CLASSES)
    assert folder_classes(str(train)) == CLASSES
    assert labels(found) == [(0, 0)] * 4 + [(1, 1)] * 4 + [(2, 2)] * 4


def test_a_class_whose_files_are_no_images_is_named(animals):
    (animals / "train" / "dog").mkdir()
    (animals / "train" / "dog" / "1.txt").write_text("no image")
    with pytest.raises(ConfigError, match=r"train/dog has no image that is read \(.png, .*\), but 1.txt"):
        len(ImageFolder(str(animals / "train"), (4, 4), (*CLASSES, "dog")))


@pytest.mark.parametrize("name", ["ant/2.tiff", "dog/2.TIF"])
def test_images_of_a_kind_that_is_not_read_are_named_not_left_out(animals, name):
    save(animals / "train" / name)
    with pytest.raises(ConfigError, match=rf"{name} is an image of a kind that is not read: save it as PNG"):
        len(ImageFolder(str(animals / "train"), (4, 4), (*CLASSES, "dog")))


def test_images_beside_the_folders_of_classes_are_refused(animals):
    save(animals / "train" / "x.png")
    with pytest.raises(ConfigError, match="holds images beside its folders"):
        len(ImageFolder(str(animals / "train"), (4, 4), CLASSES))


def test_the_identity_holds_all_that_the_pixels_and_labels_depend_on_but_the_place(animals, tmp_path):
    import shutil

    source = ImageFolder(str(animals / "train"), (4, 4), CLASSES)
    others = (replace(source, size=(5, 4)), replace(source, gray=True), replace(source, classes=(*CLASSES, "dog")))
    assert len({one.identity() for one in (source, *others)}) == 4
    shutil.copytree(animals / "train", tmp_path / "moved")
    assert replace(source, folder=str(tmp_path / "moved")).identity() == source.identity()
    small = Stored(source, str(tmp_path / "stored"))
    assert small[0]["image"].shape == (4, 4, 3)
    assert replace(small, source=others[0])[0]["image"].shape == (5, 4, 3)  # not what was stored of the other size


def test_classes_survive_pickling_and_are_saved_with_the_run(animals, tmp_path):
    run = begin(tmp_path / "run", experiment(animals), None)
    saved = run.saved["experiment"]
    assert saved["data"]["source"]["classes"] == saved["evals"]["test"]["source"]["classes"] == list(CLASSES)
    source = pickle.loads(pickle.dumps(ImageFolder(str(animals / "test"), (4, 4), CLASSES)))
    assert labels(source) == [(0, 0), (2, 2)]


def experiment(animals: Path, test=CLASSES, task=CLASSES) -> Experiment:
    model = ViT(outputs=3, patch=2, blocks=Blocks(width=8, layers=1, heads=2))
    return Experiment(
        task=Classification(model=model, inputs="image", classes=task),
        data=Pipeline(ImageFolder(str(animals / "train"), (4, 4), CLASSES), batch_size=4),
        optimizer=AdamW(),
        steps=1,
        evals={"test": Pipeline(ImageFolder(str(animals / "test"), (4, 4), test), batch_size=2)},
    )


@pytest.mark.parametrize(
    ("changes", "where"), [({"test": ("ant", "cat")}, "evals.test"), ({"task": ("cat", "bee", "ant")}, "task.classes")]
)
def test_a_run_whose_splits_or_task_have_other_classes_is_refused(animals, tmp_path, changes, where):
    with pytest.raises(ConfigError, match=rf"{where}.*\n?.*\('ant', 'bee', 'cat'\)"):
        begin(tmp_path / "run", experiment(animals, **changes), None)
    assert not (tmp_path / "run").exists()
