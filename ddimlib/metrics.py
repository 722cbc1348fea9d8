"""How good are the samples: recognised as the class that was asked for, and distributed like real images."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddimlib.data import PRETRAINED, load_dataset, to_model_range
from ddimlib.storage import read_tensors, write_tensors

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance


class Classifier(nn.Sequential):
    """A small convolutional classifier: images in [-1, 1], [B, C, H, W], to class scores [B, num_classes].

    It folds 2×2 pixels into channels first, so that it works at half the resolution and is quick to train.

    Args:
        channels: image channels C.
        num_classes: number of classes.
    """

    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        def block(i: int, o: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())

        super().__init__(
            nn.Sequential(
                nn.PixelUnshuffle(2), block(4 * channels, 32, 1), block(32, 64, 1), block(64, 128, 2), block(128, 128, 1),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU(),
            ),
            nn.Linear(64, num_classes),
        )  # fmt: skip

    @property
    def features(self) -> nn.Module:
        """The part below the class scores: images to 64 features, [B, 64]."""
        return self[0]


class FeatureExtractor(nn.Module):
    """What the Fréchet distance looks through: a classifier's features, with their number where torchmetrics expects it."""

    num_features = 64

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.features = classifier.features

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


class Judge:
    """A classifier together with the features of its training images, which samples are compared with.

    The features are a classifier's, not Inception's, so that they need no download and suit grey 28×28 images. Their
    distances can be compared with one another, and with the floor, but not with published FID values.

    Args:
        classifier: trained, see :func:`train_classifier`.
        reference: what :meth:`reference_state` returned.
        facts: facts about the two: "test_accuracy", in [0, 1], and "floor", the Fréchet distance between train and test.
    """

    def __init__(
        self, classifier: Classifier, reference: dict[str, Tensor] | None = None, facts: dict | None = None
    ) -> None:
        self.classifier = classifier.eval()
        self.facts = facts or {}
        self._reference = reference

    @cached_property
    def _metric(self) -> "FrechetInceptionDistance":
        """The Fréchet distance to the reference: made when it is first asked for, since its import takes seconds."""
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(FeatureExtractor(self.classifier), reset_real_features=False)
        metric.persistent(True)
        if self._reference is not None:
            metric.load_state_dict(self._reference, strict=False)
        return metric

    @classmethod
    def load(cls, name: str) -> "Judge":
        """The shipped judge of "mnist" or "fashion", or one of your own, by the path of its .safetensors file.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when the file is damaged, or does not hold a judge.
        """
        path = name if name.endswith(".safetensors") else PRETRAINED / f"{name}-classifier.safetensors"
        tensors, facts = read_tensors(path)
        if "floor" not in facts:
            raise ValueError(
                f"{path} was written by ddimlib but holds no judge; did you mean the file of a classifier?"
            )
        classifier = Classifier(facts["channels"], facts["num_classes"])
        reference = {k: v for k, v in tensors.items() if k.startswith("real_")}
        classifier.load_state_dict({k: v for k, v in tensors.items() if k not in reference})
        return cls(classifier, reference, facts)

    def save(self, path: str | Path) -> None:
        """Write classifier, reference and facts to one safetensors file."""
        write_tensors(path, self.classifier.state_dict() | self.reference_state(), self.facts)

    @torch.no_grad()
    def observe_real(self, images: Tensor) -> None:
        """Add real images, [N, C, H, W] in [-1, 1], to the reference."""
        for part in images.split(500):
            self._metric.update(part, real=True)

    def reference_state(self) -> dict[str, Tensor]:
        """Sums over the features of the real images: enough for the Fréchet distance, 33 KB instead of a data set."""
        return {k: v for k, v in self._metric.state_dict().items() if k.startswith("real_")}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The most likely class of each image, int64 [N]."""
        return torch.cat([self.classifier(part).argmax(1) for part in images.cpu().split(500)])

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of the images, in [0, 1], that are recognised as their label."""
        return float((self.predict(images) == labels).double().mean())

    @torch.no_grad()
    def frechet_distance(self, images: Tensor) -> float:
        """‖μ_1 - μ_2‖² + tr(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^½) between the features of `images` and the reference; ≥ 0.

        Source: Heusel et al. 2017, equation 6, with this judge's features. It has a bias that shrinks with the number of
        images: compare only values of the same N.

        Raises:
            ValueError: with fewer than 2 images.
        """
        if len(images) < 2:
            raise ValueError(f"a Fréchet distance needs at least 2 images, got {len(images)}")
        self._metric.reset()
        for part in images.cpu().split(500):
            self._metric.update(part, real=False)
        return float(self._metric.compute())


def train_classifier(
    name: str, root: str | Path = "data", epochs: int = 8, seed: int = 0, progress: bool = True
) -> Judge:
    """Train the classifier of a judge on a data set's training part; its facts are measured on the test part.

    Args:
        name, root: see :func:`ddimlib.data.load_dataset`.
        epochs: passes over the training images, each shifted by up to two pixels.
        seed: of the weights, the order and the shifts.
    """
    images, labels = load_dataset(name, root, train=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = Classifier(images.shape[1], int(labels.max()) + 1).to(memory_format=torch.channels_last)
        steps = epochs * (len(images) // 128)
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.02)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
        with tqdm(total=steps, disable=not progress, desc="classifier") as bar:
            for _ in range(epochs):
                for chosen in torch.randperm(len(images))[: steps // epochs * 128].split(128):
                    x = nn.functional.pad(to_model_range(images[chosen]), (2, 2, 2, 2), value=-1)
                    i, j = torch.randint(0, 5, (2,)).tolist()
                    x = x[:, :, i : i + images.shape[2], j : j + images.shape[3]]
                    loss = nn.functional.cross_entropy(classifier(x), labels[chosen], label_smoothing=0.05)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    rate.step()
                    bar.update()
    test_images, test_labels = load_dataset(name, root, train=False)
    test_images = to_model_range(test_images)
    judge = Judge(classifier)
    judge.observe_real(to_model_range(images))
    judge.facts = {
        "channels": images.shape[1],
        "num_classes": int(labels.max()) + 1,
        "data": name,
        "epochs": epochs,
        "test_accuracy": judge.accuracy(test_images, test_labels),
        "floor": judge.frechet_distance(test_images),
        "test_images": len(test_images),
    }
    return judge
