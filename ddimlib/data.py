"""Image data sets as tensors: torchvision's own, any folder of images, and a small bundled sample."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ddimlib.arguments import KindError, check_bytes, check_finite, describe

PRETRAINED = Path(__file__).parent / "pretrained"

DATASETS = {"mnist": "MNIST", "fashion": "FashionMNIST", "cifar10": "CIFAR10"}
"""Name here: name of the class in torchvision.datasets. It is imported where it is needed: that takes seconds."""

DATA_LICENCES = {"mnist": "CC BY-SA 3.0", "fashion": "MIT", "cifar10": "no licence stated; cite Krizhevsky 2009"}

CLASS_NAMES = {
    "mnist": [str(i) for i in range(10)],
    "fashion": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"],
    "cifar10": ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}


LARGEST = 1024 * 1024
"""Pixels of a picture, at most: more is a slip, or a small file that would fill the memory."""


def to_model_range(images: Tensor) -> Tensor:
    """Bytes 0..255 to float32 in [-1, 1], the range that the forward process assumes (Ho et al. 2020, section 3.3)."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        fix = "torch.from_numpy makes a tensor of an array, and images in [0, 1] become 2 * x - 1"
        raise KindError(f"to_model_range takes bytes 0..255 as a tensor uint8, got {describe(images)}; {fix}")
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Floating-point images in the model range [-1, 1] to bytes 0..255; what lies outside is clipped."""
    check_finite("images", images, batch=False)
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Bytes [N, C, H, W] with so many channels: grey repeated in three, colour weighed into one as the eye does."""
    check_bytes("images", images)
    if channels == images.shape[1]:
        return images
    if {channels, images.shape[1]} != {1, 3}:
        raise ValueError(f"images of {images.shape[1]} channels cannot be turned into such of {channels}; use 1 or 3")
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    return images.expand(-1, 3, -1, -1).contiguous() if channels == 3 else rgb_to_grayscale(images.float()).byte()


def warped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, sheared, stretched, moved and bent a little: still of its class, but never seen before.

    The affine part turns by a few degrees and changes lengths by some per cent; the smooth displacement on top of it moves
    a pixel by about half a pixel (Simard et al. 2003, "Best practices for convolutional neural networks", section 2).
    What comes in from outside repeats the border. x is [B, C, H, W], on any device; the generator draws on the CPU, for the
    whole batch at once.
    """
    n, h, w = len(x), *x.shape[2:]
    made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    turns = torch.randn(n, 2, 3, generator=generator, **made) * torch.tensor([1.0, 1.0, 0.6], **made)
    affine = torch.eye(2, 3, **made) + 0.08 * turns
    coarse = torch.randn(n, 2, 4, 4, generator=generator, **made)
    bend = 1.2 / w * F.interpolate(coarse, (h, w), mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False) + bend
    return F.grid_sample(x, grid.to(x.device), padding_mode="border", align_corners=False)


def load_dataset(name: str, root: str | Path = "data", train: bool = True) -> tuple[Tensor, Tensor | None]:
    """A whole data set in memory, downloaded by torchvision when it is not under `root` yet.

    A folder of pictures has `train` and `test` inside, or is all for training. Each part has a subfolder for each class, in
    alphabetical order, or holds the pictures itself: then they have no classes. A folder `root`/`name` with `train` inside is
    used instead of a download. Hidden files and folders are left out. Pictures are turned as their camera says, transparent
    ones are laid on white, and 16-bit and float ones scaled to bytes; if all are grey, they have one channel.

    Args:
        name: "mnist", "fashion", "cifar10", or the path of a folder of pictures.
        root: where torchvision keeps its data sets.
        train: the training part or the test part.

    Returns:
        images, uint8 [N, C, H, W], and labels, int64 [N], or None for pictures without classes.

    Raises:
        ValueError: when the name is neither a known data set nor a folder; when pictures differ in size, are too large,
            damaged, or no pictures, with the file; when train and test have other classes.
        RuntimeError: when the download fails; it says what to do by hand.
    """
    folder = Path(root, name) if name in DATASETS else Path(name)
    if name not in DATASETS or (folder / "train").is_dir():
        return _load_folder(folder, "train" if train else "test")
    from torchvision import datasets

    try:
        dataset = getattr(datasets, DATASETS[name])(root, train=train, download=True)
    except Exception as error:
        raise RuntimeError(
            f"{name} could be neither read from {Path(root).resolve()} nor downloaded ({error}); connect to the "
            f"network once, or copy torchvision's files of {DATASETS[name]} there, and remove what is damaged there"
        ) from error
    images = torch.as_tensor(dataset.data, device="cpu")
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(dataset.targets, device="cpu")


def _load_folder(folder: Path, part: str) -> tuple[Tensor, Tensor | None]:
    if not folder.is_dir():
        raise ValueError(f"no data set {str(folder)!r}: use one of {', '.join(DATASETS)}, or a folder of pictures")
    split = (folder / "train").is_dir() or (folder / "test").is_dir()
    if not (folder / part).is_dir() and (split or part == "test"):
        raise ValueError(f"{folder} has no folder {part}/; put the pictures of that part there")
    classes = _classes(folder / part if split else folder)
    other = folder / ("test" if part == "train" else "train")
    if split and other.is_dir() and (there := _classes(other)).keys() != classes.keys():
        different = ", ".join(repr(name) for name in sorted(there.keys() ^ classes.keys()))
        raise ValueError(f"{folder}: train/ and test/ must have the same classes, but only one has {different}")
    paths = [path for members in classes.values() for path in members]
    sizes = {path: _size(path) for path in paths}
    width, height = sizes[paths[0]]
    for path, size in sizes.items():
        if size != (width, height):
            first = f"the first image has {width}×{height}"
            raise ValueError(
                f"{path} has {size[0]}×{size[1]} pixels, {first}; give all images of the data set one size"
            )
    pixels = np.empty((len(paths), height, width, 3), dtype=np.uint8)

    def decode(i: int) -> None:
        pixels[i] = _decoded(paths[i])

    with ThreadPoolExecutor() as decoders:  # decoding leaves the interpreter free
        list(decoders.map(decode, range(len(paths))))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    if all((images[:, 0] == images[:, i]).all() for i in (1, 2)):
        images = images[:, :1]
    labels = [i for i, members in enumerate(classes.values()) for _ in members]
    return images.contiguous(), None if list(classes) == [""] else torch.tensor(labels, device="cpu")


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class, in order; the class of pictures that lie in the folder itself is ""."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))
    classes = {name: _pictures(folder / name) for name in names}
    loose = [path for path in sorted(folder.iterdir()) if _is_picture(path)]
    if loose and names:
        raise ValueError(f"{loose[0]} lies beside the folders of the classes; move it into one of them, or away")
    classes = {"": loose} if loose else classes
    if empty := [name for name, members in classes.items() if not members]:
        raise ValueError(f"{folder / empty[0]} holds no pictures; fill it or remove it")
    if not classes:
        raise ValueError(f"{folder} holds no pictures")
    return classes


def _pictures(folder: Path) -> list[Path]:
    """All pictures below a folder, in order. Links are followed, but neither upwards nor into a folder for a second time."""
    found: list[Path] = []
    entered = {str(above) for above in Path(os.path.realpath(folder)).parents}  # other classes lie there
    for place, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [path for path in (Path(place, name) for name in sorted(files)) if _is_picture(path)]
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_picture(path: Path) -> bool:
    Image.init()
    readable = Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN
    return readable and not _is_hidden(path.name) and not path.is_dir()


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """An open picture; whatever goes wrong with it, the error names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:
        raise ValueError(f"{path} is damaged or no picture ({error}); replace it or remove it") from error


def _size(path: Path) -> tuple[int, int]:
    """Width and height, from the head of the file; refuses what is no picture, or too large to train on."""
    if not path.is_file():
        raise ValueError(f"{path} is no file, but a pipe, a device or a broken link; remove it")
    with _picture(path) as image:
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # lying on its side
            width, height = height, width
    if width * height > LARGEST:
        why = "more than networks here are trained on; resize it to 64×64, say"
        raise ValueError(f"{path} has {width}×{height} pixels, {why}")
    return width, height


def _decoded(path: Path) -> np.ndarray:
    """A picture as bytes [H, W, 3]: upright, on white where it is transparent, 16-bit and float values scaled."""
    with _picture(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image, dtype=np.float64)
            largest = 1.0 if image.mode == "F" and values.max() <= 1 else 255.0 if image.mode == "F" else 65535.0
            if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= largest):
                raise ValueError(f"values from {values.min():g} to {values.max():g}, not from 0 to {largest:g}")
            image = Image.fromarray((values * (255 / largest)).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def bundled_samples() -> list[str]:
    """Names of the data sets of which :func:`bundled_sample` has images."""
    return sorted(path.name.removesuffix("-sample.npz") for path in PRETRAINED.glob("*-sample.npz"))


def bundled_sample(name: str, train: bool = False) -> tuple[Tensor, Tensor]:
    """Images that are shipped with the library, for examples with no network.

    Args:
        name: "mnist" or "fashion".
        train: the first 10,000 training images, which only MNIST has, instead of the first 200 test images.

    Returns:
        images, float32 [N, 1, 28, 28] in [-1, 1], and labels, int64 [N].
    """
    path = PRETRAINED / (f"{name}-train.npz" if train else f"{name}-sample.npz")
    if not path.exists():
        shipped = "mnist" if train else ", ".join(bundled_samples())
        raise ValueError(f"no bundled {'training ' if train else ''}sample {name!r}; shipped are: {shipped}")
    with np.load(path, allow_pickle=False) as arrays:
        return to_model_range(torch.from_numpy(arrays["images"])), torch.from_numpy(arrays["labels"]).long()
