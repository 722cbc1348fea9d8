"""Wrappers that make a denoiser out of something else.

A denoiser is any callable `eps = model(x, t)` with x [B, C, H, W], t int64 [B] in 1..T, and eps of x's shape.
Each wrapper is an `nn.Module`, so that samplers can find the network inside it, its device and its mode.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ddimlib.schedule import NoiseSchedule
from ddimlib.unet import UNet


class VelocityDenoiser(nn.Module):
    """Reads a network's output as the velocity v and returns the noise, ε = √(1-ᾱ_t) x_t + √ᾱ_t v.

    With v = √ᾱ_t ε - √(1-ᾱ_t) x_0, the network answers "what is the noise?" at small t and "what is the image?" at large
    t: in each case the question that is still worth asking. Source: Salimans & Ho 2022, section 4 and appendix D.

    Args:
        network: called as network(x, t, labels), [B, C, H, W].
        schedule: the schedule whose ᾱ relates v to ε.
    """

    signal: Tensor
    sigma: Tensor

    def __init__(self, network: UNet, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.network: UNet = network
        self.schedule = schedule
        # tables on the network's device: looking t up must not wait for the host
        self.register_buffer("signal", schedule.alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - schedule.alpha_bar).sqrt().float(), persistent=False)

    @property
    def num_classes(self) -> int | None:
        """Number of class labels the network knows, or None."""
        return self.network.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network was trained on."""
        return self.network.image_shape

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        v = self.network(x, t, labels)
        return self.sigma[t][:, None, None, None] * x + self.signal[t][:, None, None, None] * v


class LabelledDenoiser(nn.Module):
    """A class-conditional network with its labels fixed: ε(x, t) = model(x, t, labels).

    Args:
        model: called as model(x, t, labels).
        labels: int64 [B], in 0..num_classes - 1; one label for each sample of the batch.

    Raises:
        ValueError: when the network has no labels, or a label is out of range; when called, if the batch has another size.
    """

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        check_labels(model, labels)
        self.model = model
        self.labels = labels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.labels = _labels_for(x, self.labels)
        return self.model(x, t, self.labels)


class GuidedDenoiser(nn.Module):
    """Classifier-free guidance: ε̃ = ε(x, t) + scale · (ε(x, t, label) - ε(x, t)).

    Source: Ho & Salimans 2022, equation 6, with scale = 1 + w: 0 ignores the label, 1 is the conditional network, more
    than 1 exaggerates what the label asks for. Both halves run as one batch of 2B.

    Args:
        model: called as model(x, t, labels); labels equal to num_classes mean "none".
        labels: int64 [B].
        scale: at least 0.

    Raises:
        ValueError: when `scale` is negative, the network has no labels, or a label is out of range; when called, if the
            batch has another size.
    """

    def __init__(self, model: nn.Module, labels: Tensor, scale: float) -> None:
        super().__init__()
        check_labels(model, labels)
        if not scale >= 0:
            raise ValueError(f"the guidance scale must be at least 0, got {scale}; 1 means no guidance")
        self.model = model
        self.labels = labels
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.labels = _labels_for(x, self.labels)
        none = torch.full_like(self.labels, int(self.model.num_classes))  # type: ignore[arg-type]
        eps = self.model(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([none, self.labels]))
        unconditional, conditional = eps.chunk(2)
        return unconditional.lerp(conditional, self.scale)


class DiffusersDenoiser(nn.Module):
    """A `diffusers.UNet2DModel` as a denoiser. Its timesteps run over 0..T-1, ours over 1..T: t here is t - 1 there.

    Args:
        unet: a network with `prediction_type` "epsilon", called as unet(x, t, class_labels=...).
        num_classes: number of class labels it knows; by default, its `num_class_embeds`. Guidance asks for the class
            `num_classes` as "none", so a network that has a row for "none" counts one class less than it has rows.
    """

    def __init__(self, unet: Any, num_classes: int | None = None) -> None:
        super().__init__()
        self.unet: Any = unet
        self.num_classes = unet.config.num_class_embeds if num_classes is None else num_classes

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.unet(x, t - 1, class_labels=labels).sample


def _labels_for(x: Tensor, labels: Tensor) -> Tensor:
    """`labels` on the device of x, to be kept: a copy at every step would make the host wait.

    There must be one for each sample: a single one would be broadcast, and silently become the label of all.
    """
    if len(labels) != len(x):
        raise ValueError(
            f"{len(labels)} labels for a batch of {len(x)}; give one label for each sample, in their order"
        )
    return labels.to(x.device)


def check_labels(model: nn.Module, labels: Tensor) -> None:
    """Raise ValueError unless `model` takes labels and each of `labels` is one of its classes."""
    num_classes = getattr(model, "num_classes", None)
    if num_classes is None:
        raise ValueError("labels were given, but this network was built without classes; leave the labels out")
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 [B], got {labels.dtype} {tuple(labels.shape)}; use torch.tensor([3, 1, 4])"
        )
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
