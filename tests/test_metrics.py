"""The judge against numbers known beforehand, with a classifier whose features are the pixels themselves."""

from dataclasses import replace

import pytest
import torch
from helpers import randn
from torch import nn

from ddimlib import metrics
from ddimlib.data import to_bytes
from ddimlib.metrics import (
    JUDGES,
    Classifier,
    InceptionDistance,
    Judge,
    ResidualClassifier,
    Shortcut,
    augmented,
    train_classifier,
)


class PixelClassifier(nn.Module):
    """Features: the 64 pixels of an 8×8 image. Class: 1 where the mean is positive, else 0."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Flatten()

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([-mean, mean], dim=1)


def judge_of(real: torch.Tensor) -> Judge:
    judge = Judge(PixelClassifier())
    judge.observe_real(real)
    return judge


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """The definition; tr (Σ_1 Σ_2)^½ is the sum of singular values of Σ_1^½ Σ_2^½."""
    a, b = a.flatten(1).double(), b.flatten(1).double()

    def root(x):
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    cross = torch.linalg.svdvals(root(a) @ root(b)).sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * cross).item()


REAL = randn(1200, 1, 8, 8).float() * torch.linspace(0.2, 1, 64).reshape(1, 1, 8, 8)


def test_the_same_images_are_at_distance_zero():
    assert judge_of(REAL).frechet_distance(REAL) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("shift", [0.1, -0.5])
def test_a_shift_is_at_its_squared_length(shift):
    assert judge_of(REAL).frechet_distance(REAL + shift) == pytest.approx(64 * shift**2, rel=1e-3)


def test_a_stretch_is_at_the_squared_difference_of_the_stds():
    variance = torch.cov(REAL.flatten(1).double().T).trace().item()
    mean = REAL.mean(0, keepdim=True)
    stretched = mean + 1.5 * (REAL - mean)
    assert judge_of(REAL).frechet_distance(stretched) == pytest.approx(0.25 * variance, rel=1e-3)


def test_any_two_sets_are_at_the_distance_of_their_gaussians():
    other = randn(700, 1, 8, 8, seed=1).float().flatten(1) @ randn(64, 64, seed=2).float() / 10
    other = other.reshape(-1, 1, 8, 8) + 0.2
    assert judge_of(REAL).frechet_distance(other) == pytest.approx(frechet(REAL, other), rel=1e-3)


def test_a_judge_can_be_asked_again_and_fed_in_parts():
    judge = Judge(PixelClassifier())
    for part in REAL.split(700):
        judge.observe_real(part)
    assert judge.frechet_distance(REAL + 1) == pytest.approx(64, rel=1e-3)
    assert judge.frechet_distance(REAL) == pytest.approx(0, abs=1e-3)


def test_the_reference_can_be_stored_and_put_back():
    fresh = Judge(PixelClassifier(), judge_of(REAL).reference_state())
    assert fresh.frechet_distance(REAL + 0.3) == pytest.approx(judge_of(REAL).frechet_distance(REAL + 0.3), rel=1e-6)


def test_one_image_has_no_distance():
    with pytest.raises(ValueError, match="got 1"):
        judge_of(REAL).frechet_distance(REAL[:1])


def test_accuracy_is_the_share_recognised_as_asked():
    images = torch.tensor([1.0, -1.0, 1.0, 1.0]).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)
    judge = Judge(PixelClassifier())
    assert judge.predict(images).tolist() == [1, 0, 1, 1]
    assert judge.accuracy(images, torch.tensor([1, 0, 1, 0])) == 0.75


@pytest.mark.parametrize(("network", "features"), [(Classifier, 64), (ResidualClassifier, 256)])
def test_the_classifier_has_the_features_its_scores_are_made_of(network, features):
    classifier = network(channels=3, num_classes=7).eval()
    x = randn(2, 3, 16, 16).float()
    assert classifier.num_features == features
    assert classifier.features(x).shape == (2, features)
    assert torch.equal(classifier(x), classifier[1](classifier.features(x)))
    assert classifier(x).shape == (2, 7)


def test_the_residual_blocks_add_to_what_they_are_given():
    x = randn(2, 4, 5, 5)
    assert torch.equal(Shortcut(nn.Tanh(), nn.Softplus())(x), x + nn.functional.softplus(x.tanh()))
    assert sum(isinstance(module, Shortcut) for module in ResidualClassifier(3).modules()) == 2


def test_a_judge_of_colour_fits_into_what_is_shipped(tmp_path):
    """25 MB in all: 19 for the network, 6 for its judge."""
    facts = {"kind": "residual", "channels": 3, "num_classes": 10, "stored_as": "float16", "floor": 0.0}
    judge = Judge(ResidualClassifier(3), facts=facts)
    judge.observe_real(randn(4, 3, 16, 16).float())
    judge.save(tmp_path / "judge.safetensors")
    assert (tmp_path / "judge.safetensors").stat().st_size <= 6e6


# --- training the classifier -----------------------------------------------------------------------------------------


def coordinates(n: int, size: int = 12) -> torch.Tensor:
    """n equal images whose two channels are the pixel's row and column, so that distortions can be read off."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([row, column]).float().expand(n, -1, -1, -1)


def test_images_are_shifted_and_mirrored_a_few_at_a_time():
    torch.manual_seed(0)
    x = augmented(coordinates(1600), shift=2, flip=True, hole=0, group=4)
    assert all(torch.equal(part, part[:1].expand_as(part)) for part in x.split(4))
    row, column = x[::4, 0, 5, 0], x[::4, 1, 0, :]
    assert set(row.int().tolist()) == {3, 4, 5, 6, 7}
    mirrored = column[:, 7] < column[:, 3]
    assert 140 < mirrored.sum() < 260
    # column 5 comes from 5 + shift, or, mirrored, from 6 + shift
    assert set((column[~mirrored, 5]).int().tolist()) == {3, 4, 5, 6, 7}
    assert set((column[mirrored, 5]).int().tolist()) == {4, 5, 6, 7, 8}
    assert (x[:, 0] == x[:, 0, :, :1]).all()  # rows stay rows
    assert (x[:, 1] == x[:, 1, :1, :]).all()


def test_what_is_shifted_in_is_a_reflection():
    torch.manual_seed(0)
    x = augmented(coordinates(400), shift=2, flip=False, hole=0, group=4)
    columns = {tuple(c.int().tolist()) for c in x[:, 1, 0]}
    assert (2, 1, 0, *range(1, 10)) in columns
    assert (*range(2, 12), 10, 9) in columns
    assert len(columns) == 5


def test_a_hole_is_a_grey_square_anywhere():
    torch.manual_seed(0)
    x = augmented(torch.ones(800, 2, 12, 12), shift=0, flip=False, hole=4, group=1)
    assert set(x.unique().tolist()) == {0, 1}
    assert torch.equal(x[:, 0], x[:, 1])
    hidden = x[:, 0] == 0
    assert (hidden.any(2).sum(1) == 4).all()
    assert (hidden.any(1).sum(1) == 4).all()
    assert hidden.any(0).all()
    assert torch.equal(augmented(x, shift=0, flip=False, hole=0), x)


def test_a_judge_no_better_than_chance_is_an_error(monkeypatch):
    def noise(name, root, train):
        generator = torch.Generator().manual_seed(int(train))
        return torch.randint(0, 256, (60, 1, 8, 8), generator=generator).to(torch.uint8), torch.arange(60) % 3

    monkeypatch.setattr(metrics, "load_dataset", noise)
    with pytest.raises(ValueError, match=r"after 600 steps .* hardly more .*\(33%\).*more images or epochs"):
        train_classifier("name", progress=False)


@pytest.mark.parametrize(("channels", "kind", "dtype"), [(1, "small", "float32"), (3, "residual", "float16")])
def test_a_trained_judge_tells_its_classes_apart_and_comes_back_from_its_file(
    channels, kind, dtype, tmp_path, monkeypatch
):
    def two_classes(name, root, train):
        labels = torch.arange(64 if train else 32) % 2
        noise = torch.randint(
            0, 100, (len(labels), channels, 16, 16), generator=torch.Generator().manual_seed(int(train))
        )
        return (noise + 150 * labels[:, None, None, None]).to(torch.uint8), labels

    monkeypatch.setattr(metrics, "load_dataset", two_classes)
    monkeypatch.setitem(JUDGES, kind, replace(JUDGES[kind], batch_size=16, peak_rate=5e-3))
    before = torch.get_rng_state()
    judge = train_classifier("name", epochs=10, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert judge.facts["test_accuracy"] >= 0.9
    assert (judge.facts["kind"], judge.facts["stored_as"], judge.facts["epochs"]) == (kind, dtype, 10)
    judge.save(tmp_path / "judge.safetensors")
    again = Judge.load(str(tmp_path / "judge.safetensors"))
    images, labels = two_classes("name", "data", False)
    images = images.float() / 127.5 - 1
    assert again.facts == judge.facts
    torch.testing.assert_close(again.classifier(images), judge.classifier(images), rtol=0, atol=1e-4)
    assert again.accuracy(images, labels) == judge.facts["test_accuracy"]
    assert again.frechet_distance(images) == pytest.approx(judge.facts["floor"], rel=1e-3)
    same = train_classifier("name", epochs=10, progress=False)
    assert torch.equal(same.classifier(images), judge.classifier(images))


# --- Inception -------------------------------------------------------------------------------------------------------


class Stub(nn.Module):
    """In Inception's place: features that can be computed by hand from the bytes it is given."""

    num_features = 12

    def forward(self, images):
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (3, 2, 2))
        return images.float().flatten(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_fid_is_the_distance_between_the_features_of_bytes(channels):
    real, other = (randn(250, channels, 2, 2, seed=seed).float() / 3 for seed in (1, 2))
    fid = InceptionDistance(to_bytes(real), network=Stub())
    assert fid.settings["fid_real_images"] == 250
    features = [to_bytes(x).expand(-1, 3, -1, -1).double() for x in (real, other + 0.2)]
    assert fid(other + 0.2) == pytest.approx(frechet(*features), rel=1e-3)
    assert fid(real) == pytest.approx(0, abs=1e-2 * frechet(*features))  # and it can be asked again


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ModuleNotFoundError("torch-fidelity is missing"), "pip install torch-fidelity"),
        (OSError("no route to host"), r"no route to host\); connect to the network once, or copy the file weights-inc"),
        (RuntimeError("invalid hash value"), "invalid hash value.*connect"),
    ],
)
def test_what_inception_lacks_is_said_with_the_way_to_get_it(raised, message, monkeypatch):
    def fails(*args, **options):
        raise raised

    monkeypatch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", fails)
    with pytest.raises(RuntimeError, match=message):
        InceptionDistance(torch.zeros(2, 3, 2, 2, dtype=torch.uint8))


def test_torchmetrics_itself_says_that_torch_fidelity_is_missing(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(RuntimeError, match="pip install torch-fidelity"):
        InceptionDistance(torch.zeros(2, 3, 2, 2, dtype=torch.uint8))


def test_a_judge_looks_in_eval_mode():
    assert not any(m.training for m in Judge(Classifier()).classifier.modules())
