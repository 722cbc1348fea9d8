"""Data sets as tensors, with no network: torchvision's classes are replaced by small ones of the same layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddimlib import bundled_sample, load_dataset
from ddimlib import data as data_module
from ddimlib.data import CLASS_NAMES, DATASETS, to_bytes, to_model_range, warped
from ddimlib.metrics import Judge


def test_every_byte_survives_the_way_there_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    x = to_model_range(every)
    assert x.dtype == torch.float32
    assert (x[0], x[255]) == (-1, 1)
    assert x.diff().allclose(torch.tensor(2 / 255))
    assert torch.equal(to_bytes(x), every)


def test_what_lies_outside_is_clipped():
    assert to_bytes(torch.tensor([-7.0, 1.5, 0.0])).tolist() == [0, 255, 128]


def test_a_warp_moves_pixels_a_little_and_each_image_in_its_own_way():
    """Images whose values are the columns: warped, they say from where each pixel came."""
    columns = torch.arange(28.0).expand(200, 1, 28, 28)
    moved = warped(columns, torch.Generator().manual_seed(0))[:, 0, 8:20, 8:20] - columns[:, 0, 8:20, 8:20]
    assert 0.5 < moved.square().mean().sqrt() < 1.5
    assert abs(moved.mean()) < 0.3
    assert moved.std(0).min() > 0.3
    assert moved.diff(dim=-1).abs().max() < 1  # smooth: no pixel overtakes its neighbour


def test_a_warp_draws_from_its_generator_alone_and_keeps_flat_images():
    x, _ = bundled_sample("mnist")
    a, b, other = (warped(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not a.allclose(other, atol=0.1)
    assert (a.min(), a.max()) >= (-1, 1 - 1e-6)
    assert warped(torch.full((3, 2, 5, 6), 0.7), torch.Generator()).allclose(torch.tensor(0.7))


def test_a_warped_digit_is_still_that_digit():
    images, labels = bundled_sample("mnist")
    assert Judge.load("mnist").accuracy(warped(images, torch.Generator().manual_seed(0)), labels) >= 0.94


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_a_sample_is_bundled(name):
    images, labels = bundled_sample(name)
    assert (images.shape, images.dtype) == ((200, 1, 28, 28), torch.float32)
    assert (images.min(), images.max()) == (-1, 1)
    assert (labels.shape, labels.dtype) == ((200,), torch.int64)
    assert set(labels.tolist()) == set(range(10))


def test_training_digits_are_bundled_and_none_of_them_is_a_test_digit():
    images, labels = bundled_sample("mnist", train=True)
    assert (images.shape, images.dtype) == ((10_000, 1, 28, 28), torch.float32)
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.dtype == torch.int64
    assert labels.bincount().min() > 800
    assert Judge.load("mnist").accuracy(images[:1000], labels[:1000]) >= 0.98
    seen = {image.numpy().tobytes() for image in images}
    assert not any(image.numpy().tobytes() in seen for image in bundled_sample("mnist")[0])


@pytest.mark.parametrize("name", ["cifar10", "mnist-train"])
def test_an_unknown_sample_is_refused(name):
    with pytest.raises(ValueError, match=f"{name!r}; shipped are: fashion, mnist"):
        bundled_sample(name)
    with pytest.raises(ValueError, match="training sample 'fashion'; shipped are: mnist"):
        bundled_sample("fashion", train=True)


def fake(data, targets):
    class Fake:
        def __init__(self, root, train, download):
            self.data, self.targets = (data, targets) if train else (data[:1], targets[:1])

    return Fake


def test_grey_images_get_a_channel(monkeypatch, tmp_path):
    pixels = torch.arange(2 * 28 * 28).reshape(2, 28, 28).to(torch.uint8)
    monkeypatch.setattr("torchvision.datasets.MNIST", fake(pixels, torch.tensor([3, 1])))
    images, labels = load_dataset("mnist", tmp_path)
    assert torch.equal(images, pixels[:, None])
    assert labels.tolist() == [3, 1]
    assert len(load_dataset("mnist", tmp_path, train=False)[0]) == 1


def test_colours_move_to_the_front(monkeypatch, tmp_path):
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake(pixels, [3, 1]))
    images, labels = load_dataset("cifar10", tmp_path)
    assert images.shape == (2, 3, 4, 5)
    assert images[1, 2, 3, 4] == pixels[1, 3, 4, 2]
    assert labels.dtype == torch.int64


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    class MNIST:
        def __init__(self, *args, **kwargs):
            raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.MNIST", MNIST)
    with pytest.raises(RuntimeError, match=r"no route to host\); connect .* copy torchvision's files of MNIST"):
        load_dataset("mnist", tmp_path)


def test_a_folder_of_images_is_a_data_set(tmp_path):
    for part, shades in {"train": [0, 100, 200], "test": [50, 60]}.items():
        for k, shade in enumerate(shades):
            folder = tmp_path / part / "ab"[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (5, 4), (shade, 0, 255)).save(folder / f"{k}.png")
    images, labels = load_dataset(str(tmp_path))
    assert (images.shape, images.dtype) == ((3, 3, 4, 5), torch.uint8)
    assert images[:, :, 0, 0].tolist() == [[0, 0, 255], [200, 0, 255], [100, 0, 255]]
    assert labels.tolist() == [0, 0, 1]
    assert load_dataset(str(tmp_path), train=False)[0][0, 0, 0, 0] == 50


def test_a_folder_named_as_a_data_set_comes_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake(np.zeros((2, 4, 5, 3), dtype=np.uint8), [3, 1]))
    for part, shade in {"train": 10, "test": 20}.items():
        (tmp_path / "cifar10" / part / "a").mkdir(parents=True)
        Image.new("RGB", (5, 4), (shade, 0, 0)).save(tmp_path / "cifar10" / part / "a" / "0.png")
    assert [load_dataset("cifar10", tmp_path, train)[0].max() for train in (True, False)] == [10, 20]


def test_images_of_different_sizes_are_refused_by_name(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for name, size in {"0": (5, 4), "1": (4, 4)}.items():
        Image.new("RGB", size).save(tmp_path / "train" / "a" / f"{name}.png")
    with pytest.raises(ValueError, match=r"1\.png has 4×4 pixels, the first image has 5×4"):
        load_dataset(str(tmp_path))


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match=r"'imagenet'.*mnist, fashion, cifar10"):
        load_dataset("imagenet")


def test_every_data_set_has_names_for_its_ten_classes():
    assert CLASS_NAMES.keys() == DATASETS.keys() == data_module.DATA_LICENCES.keys()
    assert {len(names) for names in CLASS_NAMES.values()} == {10}
