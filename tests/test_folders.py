"""Folders of pictures as people have them: what is left out, turned, scaled, and what is refused by name."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ddimlib.data import load_dataset


def save(path, pixels=100, size=(6, 4), mode="RGB", **options):
    """A picture of one colour; the folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, pixels).save(path, **options)
    return path


def two_classes(folder, *, mode="RGB", colour=(200, 10, 30)):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(2):
                save(folder / part / name / f"{i}.png", colour, mode=mode)
    return folder


@pytest.mark.parametrize("junk", [".ipynb_checkpoints/0.png", ".thumbnails/0.png", "cat/.thumbnails/0.png", "cat/._0.png",
                                  "__MACOSX/cat/0.png", ".DS_Store", "cat/Thumbs.db", "cat/a.pdf"])  # fmt: skip
def test_what_other_programs_leave_is_left_out(junk, tmp_path):
    two_classes(tmp_path)
    place = tmp_path / "train" / junk
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"no picture")
    images, labels = load_dataset(str(tmp_path))
    assert len(images) == 4
    assert labels.tolist() == [0, 0, 1, 1]


def test_links_are_followed_and_loops_are_not(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train" / "cat")
    (tmp_path / "train" / "cat" / "above").symlink_to("..")  # there lie the dogs, too
    (tmp_path / "train" / "cat" / "up").symlink_to(tmp_path / "train" / "dog")
    images, labels = load_dataset(str(tmp_path))
    assert labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert len(images) == 6


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jfif", ".gif", ".webp", ".bmp", ".tif", ".JPG"])
def test_every_usual_kind_of_picture_is_read(suffix, tmp_path):
    save(tmp_path / "a" / f"0{suffix}", (250, 130, 20))
    save(tmp_path / "b" / "1.png", (250, 130, 20))
    images, _ = load_dataset(str(tmp_path))
    assert (images[0].int() - images[1].int()).abs().max() <= 4
    assert images.shape == (2, 3, 4, 6)


def test_pictures_are_turned_as_the_camera_says(tmp_path):
    tmp_path.joinpath("a").mkdir()
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0] = 255  # the top row
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png", exif=exif)
    images, _ = load_dataset(str(tmp_path))
    assert images.shape == (1, 1, 6, 4)
    assert (images[0, 0, :, -1] == 255).all()
    assert images[0, 0, :, :-1].max() == 0


def test_what_is_transparent_lies_on_white(tmp_path):
    save(tmp_path / "a" / "0.png", (10, 20, 30, 0), mode="RGBA")
    save(tmp_path / "a" / "1.png", (10, 20, 30, 255), mode="RGBA")
    images, _ = load_dataset(str(tmp_path))
    assert images[:, :, 0, 0].tolist() == [[255, 255, 255], [10, 20, 30]]


@pytest.mark.parametrize(
    ("mode", "suffix", "value"), [("I;16", ".png", 65535 * 0.4), ("F", ".tif", 0.4), ("F", ".tif", 102.0)]
)
def test_deep_pictures_are_scaled_and_not_clipped(mode, suffix, value, tmp_path):
    tmp_path.joinpath("a").mkdir()
    dtype = {"I;16": np.uint16, "F": np.float32}[mode]
    Image.fromarray(np.full((4, 6), value, dtype=dtype)).save(tmp_path / "a" / f"0{suffix}")
    images, _ = load_dataset(str(tmp_path))
    assert images.shape == (1, 1, 4, 6)
    assert images.unique().tolist() == [102]


@pytest.mark.parametrize(
    ("mode", "colour", "channels"), [("L", 90, 1), ("RGB", (90, 90, 90), 1), ("RGB", (90, 91, 90), 3)]
)
def test_grey_stays_grey(mode, colour, channels, tmp_path):
    images, _ = load_dataset(str(two_classes(tmp_path, mode=mode, colour=colour)))
    assert images.shape == (4, channels, 4, 6)


@pytest.mark.parametrize("part", ["", "train"])
def test_a_folder_of_pictures_alone_has_no_classes(part, tmp_path):
    for i in range(3):
        save(tmp_path / part / f"{i}.png", i)
    images, labels = load_dataset(str(tmp_path))
    assert len(images) == 3
    assert labels is None


def test_classes_need_no_train_folder(tmp_path):
    save(tmp_path / "cat" / "0.png")
    save(tmp_path / "dog" / "0.png")
    assert load_dataset(str(tmp_path))[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match="has no folder test/"):
        load_dataset(str(tmp_path), train=False)


def bomb(path):
    """A small PNG whose head promises 30,000 × 30,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 99)))


def truncated(path):
    save(path, size=(60, 40))
    path.write_bytes(path.read_bytes()[:-40])


def cut_jpeg(path):
    generator = np.random.default_rng(0)
    path = path.with_suffix(".jpg")
    Image.fromarray(generator.integers(0, 255, (4, 6, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-100])


BAD = {
    "truncated": (truncated, "x.png"),
    "cut": (cut_jpeg, "x.jpg is damaged or no picture"),
    "text": (lambda path: path.write_text("hello"), "x.png is damaged or no picture"),
    "empty": (lambda path: path.write_bytes(b""), "x.png is damaged or no picture"),
    "pipe": (lambda path: os.mkfifo(path), "x.png is no file, but a pipe"),
    "broken link": (lambda path: path.symlink_to("nowhere.png"), "x.png is no file"),
    "bomb": (bomb, "x.png"),
    "large": (lambda path: save(path, size=(4000, 3000)), r"x.png has 4000×3000 pixels.*resize"),
    "other size": (lambda path: save(path, size=(5, 4)), r"x.png has 5×4 pixels, the first image has 6×4"),
    "negative": (
        lambda path: Image.fromarray(np.full((4, 6), -1, np.float32)).save(path.with_suffix(".tif")),
        "x.tif.*-1",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_used_is_named(kind, tmp_path):
    make, message = BAD[kind]
    two_classes(tmp_path)
    make(tmp_path / "train" / "dog" / "x.png")
    with pytest.raises(ValueError, match=message):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("part", ["train", "test"])
def test_train_and_test_must_have_the_same_classes(part, tmp_path):
    save(two_classes(tmp_path) / part / "bird" / "0.png")
    for train in (True, False):
        with pytest.raises(ValueError, match=r"same classes, but only one has 'bird'"):
            load_dataset(str(tmp_path), train=train)


def test_strays_and_empty_classes_are_named(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "train" / "bird").mkdir()
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(ValueError, match="bird holds no pictures"):
        load_dataset(str(tmp_path))
    save(tmp_path / "train" / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies beside the folders of the classes"):
        load_dataset(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        load_dataset(str(tmp_path / "none"))


def test_the_order_is_that_of_the_names(tmp_path):
    for i in (2, 0, 1):
        save(tmp_path / "b" / f"{i}.png", (i, 0, 0))
        save(tmp_path / "a" / f"{i}.png", (10 + i, 0, 0))
    images, labels = load_dataset(str(tmp_path))
    assert images[:, 0, 0, 0].tolist() == [10, 11, 12, 0, 1, 2]
    assert torch.equal(labels, torch.tensor([0, 0, 0, 1, 1, 1]))
