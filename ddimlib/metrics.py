"""How good are the samples: recognised as the class that was asked for, and distributed like real images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ddimlib.arguments import check_images, check_int, check_labels
from ddimlib.data import DATASETS, PRETRAINED, load_dataset, to_bytes, to_model_range
from ddimlib.guidance import Labels
from ddimlib.storage import check_tensors, digest, read_tensors, write_tensors
from ddimlib.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance


class Classifier(nn.Sequential):
    """A small convolutional classifier: images in [-1, 1], [B, channels, H, W], to class scores [B, num_classes].

    It folds 2×2 pixels into channels first, so that it works at half the resolution and is quick to train.
    """

    num_features = 64

    @torch_defaults()
    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__(nn.Sequential(*self.layers(channels)), nn.Linear(self.num_features, num_classes))

    @staticmethod
    def layers(channels: int) -> list[nn.Module]:
        """Those below the class scores."""

        def block(i: int, o: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())

        return [
            nn.PixelUnshuffle(2), block(4 * channels, 32, 1), block(32, 64, 1), block(64, 128, 2), block(128, 128, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU(),
        ]  # fmt: skip

    @property
    def features(self) -> nn.Module:
        """The part below the class scores: images to [B, num_features]."""
        return self[0]


class Shortcut(nn.Sequential):
    """Layers that add to what they are given."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ResidualClassifier(Classifier):
    """A deeper one, for colour images with H and W multiples of 8: 2.4 million weights.

    One convolution, then three that halve the resolution, two of them with a residual block: the network of Page 2018, "How
    to train your ResNet", with half of its last width.
    """

    num_features = 256

    @staticmethod
    def layers(channels: int) -> list[nn.Module]:
        def block(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

        return [
            *block(channels, 64),
            *block(64, 128), nn.MaxPool2d(2), Shortcut(*block(128, 128), *block(128, 128)),
            *block(128, 256), nn.MaxPool2d(2),
            *block(256, 256), nn.MaxPool2d(2), Shortcut(*block(256, 256), *block(256, 256)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ]  # fmt: skip


class FeatureExtractor(nn.Module):
    """What a Fréchet distance looks through: features computed on a device and summed up, in float64, on the CPU.

    `features` maps images to [B, num_features]; torchmetrics asks for their number under this name.
    """

    def __init__(self, features: nn.Module, num_features: int, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self.features, self.num_features, self.device = features, num_features, device

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.features(images.to(self.device)).cpu()


class Judge:
    """A classifier together with the features of its training images, which samples are compared with.

    The features are a classifier's, not Inception's, so that they need no download and suit grey 28×28 images. Their
    distances can be compared with one another, and with the floor, but not with published FID values.

    Args:
        classifier: trained, see :func:`train_classifier`.
        reference: what :meth:`reference_state` returned.
        facts: facts about the two: "test_accuracy", in [0, 1], and "floor", the Fréchet distance between train and test.
        device: where the classifier works.
    """

    def __init__(
        self,
        classifier: Classifier,
        reference: dict[str, Tensor] | None = None,
        facts: dict | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.classifier = classifier.to(device).eval()
        self.facts, self.device, self._reference = facts or {}, device, reference

    @cached_property
    @torch_defaults()
    def _metric(self) -> "FrechetInceptionDistance":
        """The Fréchet distance to the reference: made when it is first asked for, since its import takes seconds."""
        from torchmetrics.image.fid import FrechetInceptionDistance

        extractor = FeatureExtractor(self.classifier.features, self.classifier.num_features, self.device)
        metric = FrechetInceptionDistance(extractor, reset_real_features=False)
        metric.persistent(True)
        if self._reference is not None:
            metric.load_state_dict(self._reference, strict=False)
        return metric

    @classmethod
    @torch_defaults()
    def load(cls, name: str, device: str | torch.device = "cpu") -> "Judge":
        """The shipped judge of a data set, such as "mnist", or one of your own, by the path of its .safetensors file.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when the file is damaged, or does not hold a judge.
        """
        path = Path(name) if name.endswith(".safetensors") else PRETRAINED / f"{name}-classifier.safetensors"
        if name in DATASETS and not path.exists():
            raise FileNotFoundError(f"no judge of {name} is shipped; `ddimlib judge {name}` makes one")
        tensors, facts = read_tensors(path)
        if "floor" not in facts:
            raise ValueError(f"{path} was written by ddimlib but holds no judge; did you mean another file?")
        try:
            classifier = JUDGES[facts.get("kind", "small")].network(facts["channels"], facts["num_classes"])
            reference = {k: v for k, v in tensors.items() if k.startswith("real_")}
            weights = {k: v for k, v in tensors.items() if k not in reference}
            dtype = getattr(torch, facts.get("stored_as", "float32"))
            check_tensors(path, weights, classifier.state_dict(), dtype)
            size = classifier.num_features
            check_tensors(path, reference, {
                "real_features_sum": torch.empty(size, dtype=torch.float64),
                "real_features_cov_sum": torch.empty(size, size, dtype=torch.float64),
                "real_features_num_samples": torch.empty((), dtype=torch.int64),
            }, None)  # fmt: skip
            classifier.load_state_dict(weights)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{path} holds no judge that can be built ({error}); fetch or make it again") from error
        return cls(classifier, reference, facts, device)

    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of classifier and reference: which judge a table belongs to."""
        return digest(self.classifier.state_dict() | self.reference_state())[:16]

    def save(self, path: str | Path) -> None:
        """Write classifier, reference and facts to one safetensors file."""
        weights: dict[str, Tensor] = self.classifier.state_dict()
        if self.facts.get("stored_as") == "float16":
            weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        write_tensors(path, weights | self.reference_state(), self.facts)

    @torch.no_grad()
    @torch_defaults()
    def observe_real(self, images: Tensor) -> None:
        """Add real images, [N, C, H, W] in [-1, 1], to the reference."""
        for part in self._parts(images):
            self._metric.update(part, real=True)

    def _parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """The images, float32, in parts that fit into memory."""
        check_images("images", images)
        channels = self.facts.get("channels", images.shape[1])
        if images.shape[1] != channels or any(side % 2 or side < 8 for side in images.shape[2:]):
            wanted = f"[N, {channels}, H, W], H and W even and at least 8"
            raise ValueError(
                f"this judge takes images {wanted}, got {tuple(images.shape)}; take the judge of their data"
            )
        return images.float().split(500)

    def reference_state(self) -> dict[str, Tensor]:
        """Sums over the features of the real images: enough for the Fréchet distance, and far smaller than they are."""
        if self._reference is not None and "_metric" not in self.__dict__:
            return self._reference
        return {k: v for k, v in self._metric.state_dict().items() if k.startswith("real_")}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The most likely class of each image, [N, C, H, W] in [-1, 1]: int64 [N]."""
        return torch.cat([self.classifier(part.to(self.device)).argmax(1).cpu() for part in self._parts(images)])

    def accuracy(self, images: Tensor, labels: Labels) -> float:
        """Share of the images, in [0, 1], that are recognised as their label; labels as for a network."""
        labels = check_labels(labels, self.facts.get("num_classes", 10**6), len(images))
        return float((self.predict(images) == labels.cpu()).double().mean())

    @torch.no_grad()
    @torch_defaults()
    def frechet_distance(self, images: Tensor) -> float:
        """‖μ_1 - μ_2‖² + tr(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^½) between the features of `images` and the reference; ≥ 0.

        Source: Heusel et al. 2017, equation 6, with this judge's features. It has a bias that shrinks with the number of
        images: compare only values of the same N.

        Raises:
            ValueError: with fewer than 2 images.
        """
        parts = self._parts(images)
        if len(images) < 2:
            raise ValueError(f"a Fréchet distance needs at least 2 images, got {len(images)}")
        self._metric.reset()
        for part in parts:
            self._metric.update(part, real=False)
        return float(self._metric.compute())


class InceptionDistance:
    """The FID of published tables: the Fréchet distance between Inception-v3's features of samples and of real images.

    Torchmetrics computes it; the package torch-fidelity, which must be installed, brings Inception and downloads its weights
    (91 MB) on first use. Published values are for 50,000 samples; with fewer, the distance comes out larger.

    Args:
        real: the real images, uint8 [N, C, H, W]; grey ones are repeated in three channels.
        device: where Inception works.
        network: another network instead of Inception: uint8 [B, 3, H, W] to features, [B, network.num_features].

    Raises:
        RuntimeError: when torch-fidelity is missing or Inception's weights cannot be fetched; it says what to do.
    """

    @torch_defaults()
    def __init__(self, real: Tensor, device: str | torch.device = "cpu", network: nn.Module | None = None) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        try:
            self.metric = FrechetInceptionDistance(2048 if network is None else network, reset_real_features=False)
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"Inception's FID needs a package that is not installed ({error}); try: pip install torch-fidelity"
            ) from error
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"Inception's weights could not be fetched ({error}); connect to the network once, or copy the file "
                f"weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases to {torch.hub.get_dir()}/checkpoints"
            ) from error
        num_features = len(self.metric.real_features_sum)
        self.metric.inception = FeatureExtractor(self.metric.inception.to(device).eval(), num_features, device)
        self.settings = {"fid_real_images": len(real), "fid_real": digest({"images": real})[:16]}
        self._update(real, real=True)

    @torch_defaults()
    def __call__(self, images: Tensor) -> float:
        """The FID of images in [-1, 1], [N, C, H, W], N ≥ 2, to the real ones; they are rounded to bytes first."""
        self.metric.reset()
        self._update(to_bytes(images), real=False)
        return float(self.metric.compute())

    def _update(self, images: Tensor, real: bool) -> None:
        for part in images.split(100):
            self.metric.update(part.expand(-1, 3, -1, -1), real=real)


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge's classifier is made.

    Attributes:
        network: called as network(channels, num_classes).
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: called as optimizer(parameters); its rate follows one cycle up to `peak_rate`, and down.
        peak_rate: the highest learning rate.
        shift: images are shifted by up to so many pixels.
        flip: mirror half of them left to right.
        hole: side of the grey square that hides a part of each image (DeVries & Taylor 2017, "Cutout").
        label_smoothing: share of the target that goes to all classes alike.
        half: store the classifier as float16; its facts are those of the rounded weights.
    """

    network: Callable[[int, int], Classifier]
    epochs: int
    batch_size: int
    optimizer: Callable[..., torch.optim.Optimizer]
    peak_rate: float
    shift: int
    flip: bool = False
    hole: int = 0
    label_smoothing: float = 0.05
    half: bool = False


JUDGES = {
    "small": JudgeRecipe(Classifier, 12, 128, partial(torch.optim.AdamW, weight_decay=0.02), 5e-3, shift=2),
    "residual": JudgeRecipe(
        ResidualClassifier, 40, 512, partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        0.4, shift=4, flip=True, hole=8, label_smoothing=0.1, half=True,
    ),
}  # fmt: skip
"""By name: "small" judges grey images, "residual" colour."""

LEAST_STEPS = 600
"""A judge of few images is trained for more epochs, to so many steps."""


@torch_defaults()
def augmented(x: Tensor, shift: int, flip: bool, hole: int, group: int = 8) -> Tensor:
    """Images shifted, mirrored and cut out at random, see :class:`JudgeRecipe`; borders are filled by reflection.

    Args:
        x: [B, C, H, W] in [-1, 1].
        group: so many images share a draw.
    """
    from torchvision.transforms import v2

    height, width = x.shape[2:]
    area = hole**2 / (height * width)
    transform = v2.Compose([
        v2.RandomCrop((height, width), padding=shift, padding_mode="reflect"),
        v2.RandomHorizontalFlip(0.5 if flip else 0.0),
        v2.RandomErasing(1.0 if hole else 0.0, scale=(area, area), ratio=(1.0, 1.0)),
    ])  # fmt: skip
    return torch.cat([transform(part) for part in x.split(group)])


@torch_defaults()
def train_classifier(
    name: str,
    root: str | Path = "data",
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> Judge:
    """Train the classifier of a judge on a data set's training part; its facts are measured on the test part.

    Args:
        name, root: see :func:`ddimlib.data.load_dataset`. Colour images are judged by a :class:`ResidualClassifier`.
        epochs: passes over the training images; by default those of :data:`JUDGES`, or as many more as make 600 steps.
        seed: of the weights, the order and the distortions.
        progress: show a progress bar.
        device: where to train.

    Raises:
        ValueError: when the images have no two classes, or an odd height or width; when the classifier ends no better than one
            that always names the most frequent class, so that it could judge nothing.
    """
    epochs = None if epochs is None else check_int("epochs", epochs, 1)
    seed = check_int("seed", seed, 0, 2**63 - 1)
    images, labels = load_dataset(name, root, train=True)
    test_images, test_labels = load_dataset(name, root, train=False)
    if labels is None or test_labels is None or int(labels.max()) < 1:
        raise ValueError(f"a judge tells classes apart, and {name} has no two; sort its images into a folder per class")
    (channels, *size), num_classes = images.shape[1:], int(labels.max()) + 1
    if any(side % 2 or side < 8 for side in size):
        sides = "×".join(str(side) for side in size)
        raise ValueError(f"a judge needs an even height and width of 8 or more, got {sides}; resize the images")
    kind = "small" if channels == 1 else "residual"
    recipe = JUDGES[kind]
    batch_size = min(recipe.batch_size, max(2, len(images) // 4))
    per_epoch = len(images) // batch_size
    epochs = epochs or max(recipe.epochs, -(-LEAST_STEPS // per_epoch))
    steps = epochs * per_epoch
    device = torch.device(device)
    images, labels = images.to(device), labels.to(device)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        tqdm(total=steps, disable=not progress, desc="classifier") as bar,
    ):
        torch.manual_seed(seed)
        classifier = recipe.network(channels, num_classes).to(device).to(memory_format=torch.channels_last)
        optimizer = recipe.optimizer(classifier.parameters())
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(images), device=device)[: per_epoch * batch_size]
            for chosen in order.split(batch_size):
                x = augmented(to_model_range(images[chosen]), recipe.shift, recipe.flip, recipe.hole)
                scores = classifier(x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(scores, labels[chosen], label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                bar.update()
    if recipe.half:
        classifier = classifier.half().float()
    stored = "float16" if recipe.half else "float32"
    facts = {
        "kind": kind,
        "channels": channels,
        "num_classes": num_classes,
        "data": name,
        "epochs": epochs,
        "stored_as": stored,
    }
    judge = Judge(classifier, facts=facts, device=device)
    accuracy = judge.accuracy(to_model_range(test_images), test_labels)
    chance = float(test_labels.bincount().max() / len(test_labels))
    if accuracy <= chance + min(3 * (chance * (1 - chance) / len(test_labels)) ** 0.5, (1 - chance) / 2):
        raise ValueError(
            f"after {steps} steps the classifier recognises {accuracy:.0%} of the test images, hardly more than by always "
            f"answering the most frequent class ({chance:.0%}); as a judge it would be worthless: give more images or epochs"
        )
    judge.observe_real(to_model_range(images))
    floor = judge.frechet_distance(to_model_range(test_images))
    judge.facts |= {"test_accuracy": accuracy, "floor": floor, "test_images": len(test_images)}
    return judge
