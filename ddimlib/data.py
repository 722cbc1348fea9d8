"""Image data sets as tensors: torchvision's own, any folder of images, and a small bundled sample."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PRETRAINED = Path(__file__).parent / "pretrained"

DATASETS = {"mnist": "MNIST", "fashion": "FashionMNIST", "cifar10": "CIFAR10"}
"""Name here: name of the class in torchvision.datasets. It is imported where it is needed: that takes seconds."""

DATA_LICENCES = {"mnist": "CC BY-SA 3.0", "fashion": "MIT", "cifar10": "no licence stated; cite Krizhevsky 2009"}

CLASS_NAMES = {
    "mnist": [str(i) for i in range(10)],
    "fashion": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"],
    "cifar10": ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}


def to_model_range(images: Tensor) -> Tensor:
    """Bytes 0..255 to float32 in [-1, 1], the range that the forward process assumes (Ho et al. 2020, section 3.3)."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Model range [-1, 1] to bytes 0..255; what lies outside is clipped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def warped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, sheared, stretched, moved and bent a little: still of its class, but never seen before.

    The affine part turns by a few degrees and changes lengths by some per cent; the smooth displacement on top of it moves
    a pixel by about half a pixel (Simard et al. 2003, "Best practices for convolutional neural networks", section 2).
    What comes in from outside repeats the border.

    Args:
        x: images, [B, C, H, W].
        generator: of the draws, on the CPU; they are made for the whole batch at once.

    Returns:
        As x.
    """
    n, h, w = len(x), *x.shape[2:]
    affine = torch.eye(2, 3) + 0.08 * torch.randn(n, 2, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.6])
    bend = (
        1.2
        / w
        * F.interpolate(torch.randn(n, 2, 4, 4, generator=generator), (h, w), mode="bicubic").permute(0, 2, 3, 1)
    )
    grid = F.affine_grid(affine, list(x.shape), align_corners=False) + bend
    return F.grid_sample(x, grid.to(x.device), padding_mode="border", align_corners=False)


def load_dataset(name: str, root: str | Path = "data", train: bool = True) -> tuple[Tensor, Tensor]:
    """A whole data set in memory, downloaded by torchvision when it is not under `root` yet.

    A folder of images has `train` and `test` inside, and these one subfolder for each class, in alphabetical order, as
    torchvision's ImageFolder reads them. All images have one size; they are read as colour. A folder `root`/`name` of that kind
    is used instead of a download.

    Args:
        name: "mnist", "fashion", "cifar10", or the path of a folder of images.
        root: where torchvision keeps its data sets.
        train: the training part or the test part.

    Returns:
        images, uint8 [N, C, H, W], and labels, int64 [N].

    Raises:
        ValueError: when the name is neither a known data set nor a folder, or when images differ in size.
        RuntimeError: when the download fails; it says what to do by hand.
    """
    folder = Path(root, name) if name in DATASETS else Path(name)
    if name not in DATASETS or (folder / "train").is_dir():
        return _load_folder(folder / ("train" if train else "test"))
    from torchvision import datasets

    try:
        dataset = getattr(datasets, DATASETS[name])(root, train=train, download=True)
    except Exception as error:
        raise RuntimeError(
            f"{name} is not under {Path(root).resolve()} and could not be downloaded ({error}); connect to the "
            f"network once, or copy torchvision's files of {DATASETS[name]} there"
        ) from error
    images = torch.as_tensor(dataset.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(dataset.targets)


def _load_folder(folder: Path) -> tuple[Tensor, Tensor]:
    if not folder.is_dir():
        raise ValueError(
            f"no data set {str(folder.parent)!r}: use one of {', '.join(DATASETS)}, or a folder with train/ and test/"
        )
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder))
    with ThreadPoolExecutor() as decoders:  # decoding leaves the interpreter free
        images = list(decoders.map(lambda sample: np.asarray(dataset.loader(sample[0])), dataset.samples))
    for (path, _), image in zip(dataset.samples, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{path} has {image.shape[1]}×{image.shape[0]} pixels, the first image has {images[0].shape[1]}×"
                f"{images[0].shape[0]}; give all images of the data set one size"
            )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


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

    Raises:
        ValueError: when no such sample is shipped.
    """
    path = PRETRAINED / (f"{name}-train.npz" if train else f"{name}-sample.npz")
    if not path.exists():
        shipped = "mnist" if train else ", ".join(bundled_samples())
        raise ValueError(f"no bundled {'training ' if train else ''}sample {name!r}; shipped are: {shipped}")
    with np.load(path, allow_pickle=False) as arrays:
        return to_model_range(torch.from_numpy(arrays["images"])), torch.from_numpy(arrays["labels"]).long()
