"""The judge against numbers known beforehand, with a classifier whose features are the pixels themselves."""

import pytest
import torch
from helpers import randn
from torch import nn

from ddimlib.metrics import Classifier, Judge


class PixelClassifier(nn.Module):
    """Features: the 64 pixels of an 8×8 image. Class: 1 where the mean is positive, else 0."""

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


def test_the_classifier_has_the_features_its_scores_are_made_of():
    classifier = Classifier(channels=3, num_classes=7).eval()
    x = randn(2, 3, 12, 12).float()
    features = classifier.features(x)
    assert features.shape == (2, 64)
    assert torch.equal(classifier(x), classifier[1](features))
    assert classifier(x).shape == (2, 7)


def test_a_judge_looks_in_eval_mode():
    assert not any(m.training for m in Judge(Classifier()).classifier.modules())
