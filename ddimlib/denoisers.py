"""What a denoiser is, how a sampler asks it, and wrappers that make one out of something else.

A denoiser is any callable `eps = model(x, t)` with x [B, C, H, W], t int64 [B] in 1..T, and eps of x's shape. Each wrapper is
an `nn.Module`, so that samplers can find the network inside it, its device, its dtype and its mode.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ddimlib.checks import KindError, check_labels, check_number, describe
from ddimlib.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""eps = model(x, t): x [B, C, H, W], t int64 [B] in 1..T, eps of x's shape."""

Prediction = Literal["eps", "x0", "v"]
"""What a network's output means: the noise ε, the image x_0, or the velocity v = √ᾱ_t ε - √(1-ᾱ_t) x_0."""

DIFFUSERS_WORDS: dict[str, str] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""The names that a scheduler of diffusers has for them, in its `config.prediction_type`."""


def said_by(model: Any, name: str) -> Any:
    """What `model` says of itself as attribute `name`, or the network inside it (DataParallel's, too), or None."""
    while isinstance(model, nn.Module):
        if (found := getattr(model, name, None)) is not None:
            return found
        inside = (getattr(model, key, None) for key in ("model", "module", "network"))
        model = next((module for module in inside if module is not None), None)
    return getattr(model, name, None)


def check_model(model: Any, schedule: Any) -> None:
    """Raise unless `model` can be called, `schedule` is one, and it is the model's own where the model knows its own."""
    if not isinstance(schedule, NoiseSchedule):
        raise KindError(f"schedule must be a NoiseSchedule, got {describe(schedule)}; models come with theirs")
    if not callable(model):
        raise KindError(
            f"model must be a callable eps = model(x, t), got {describe(model)}; "
            'model, schedule = load_pretrained("mnist") gives one'
        )
    own = said_by(model, "schedule")
    if isinstance(own, NoiseSchedule) and not own.same_as(schedule):
        raise ValueError(f"this model was made for {own}, but it is used with {schedule}; pass model.schedule")


class Asked:
    """ε = model(x, t) with one t for the whole batch, as every sampler asks.

    The network is in eval mode while it is asked, and put back after every evaluation and not at the end of a walk, so that a
    walk that is interrupted or simply abandoned leaves nothing behind. Threads may share a network: it goes back to training
    mode when the last evaluation in progress ends. It is asked in its own dtype, and its answer has the dtype of x. If it
    works in place, it is given copies of x. Answers carry no gradient unless `differentiable`.

    Args:
        model: the denoiser.
        differentiable: keep the graph, so that gradients reach x and the weights.

    Raises:
        ValueError: when the answer does not have the shape of x, is not floating point, or lacks the gradient asked for.
    """

    def __init__(self, model: Denoiser, differentiable: bool = False) -> None:
        self.model, self.differentiable = model, differentiable
        self.modules = list(model.modules()) if isinstance(model, nn.Module) else []
        floating = (
            (p.dtype for p in model.parameters() if p.is_floating_point()) if isinstance(model, nn.Module) else ()
        )
        self.dtype: torch.dtype | None = said_by(model, "input_dtype") or next(iter(floating), None)
        self.copies = True  # until the first answer shows that none are needed

    def __call__(self, x: Tensor, t: int) -> Tensor:
        given = x if self.dtype is None else x.to(self.dtype)
        if given is x and (self.copies or x.is_inference()):
            given = x.clone()
        before = _version(given)
        with _eval_mode(self.modules), torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            eps = self.model(given, torch.full((len(x),), t, dtype=torch.int64, device=x.device))
        if given is x and _version(x) != before:
            raise RuntimeError(f"the network changed its input in place at t = {t}, but not before; give it a copy")
        self.copies = self.copies and _version(given) != before
        if not isinstance(eps, Tensor):
            raise KindError(
                f"a denoiser must return a tensor, got {describe(eps)}; wrap it, as in lambda x, t: network(x, t)[0], or "
                "DiffusersDenoiser(unet)"
            )
        if eps.shape != x.shape:
            raise ValueError(
                f"a denoiser must return the shape it was given, {tuple(x.shape)}, got {tuple(eps.shape)}; a network that "
                "also predicts variances is wrapped as PredictionDenoiser(network, schedule, 'eps'), which drops them"
            )
        if not eps.is_floating_point():
            raise ValueError(f"a denoiser must return floating-point numbers, got {eps.dtype}")
        if self.differentiable and not eps.requires_grad:
            raise ValueError(
                "the answer of this network carries no gradient: neither x nor a weight requires one, or it runs under "
                "torch.no_grad or was accelerated; differentiate through the plain network"
            )
        return eps.to(x.dtype)


def predict_noise(model: Denoiser, x: Tensor, t: int) -> Tensor:
    """ε = model(x, t) with one t for the batch, once, as samplers ask: see :class:`Asked`."""
    return Asked(model)(x, t)


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version


_counting = threading.Lock()
_in_use: dict[nn.Module, int] = {}


@contextmanager
def _eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """`modules` in eval mode, those in training mode until the last of the evaluations that share them has ended."""
    switched: list[nn.Module] = []
    try:
        with _counting:
            for module in modules:
                if module.training or (_in_use and module in _in_use):
                    switched.append(module)
                    _in_use[module] = _in_use.get(module, 0) + 1
                    module.training = False
        yield
    finally:
        if switched:
            with _counting:
                for module in switched:
                    _in_use[module] -= 1
                    if not _in_use[module]:
                        del _in_use[module]
                        module.training = True


class PredictionDenoiser(nn.Module):
    """Reads a network's output as ε, x_0 or v, and returns the noise ε.

    "eps": ε = output.  "x0": ε = (x_t - √ᾱ_t output)/√(1-ᾱ_t).  "v": ε = √(1-ᾱ_t) x_t + √ᾱ_t output (Salimans & Ho 2022,
    section 4 and appendix D). Each is a multiple of x_t and one of the output, looked up at t.

    Where ᾱ_T = 0, ε is x_T itself and says nothing about x_0. There, and only there, the answer is the velocity, -x̂_0, which
    samplers expect at such a T; so a network that predicts v or x_0 can be used with a schedule that ends in pure noise.

    Args:
        network: called as network(x, t, labels), or network(x, t) when no labels are given; [B, C, H, W]. If it returns 2C
            channels, the second half, a learned variance, is dropped, with a warning.
        schedule: the schedule that it was trained with; only a network that predicts ε can do without.
        prediction: what its output means.

    Raises:
        ValueError: for an unknown `prediction`; KindError, when the schedule is missing.
    """

    of_x: Tensor
    of_output: Tensor

    def __init__(self, network: Any, schedule: NoiseSchedule | None = None, prediction: Prediction = "eps") -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, got {describe(prediction)}")
        self.network, self.schedule, self.prediction = network, schedule, prediction
        if prediction == "eps":
            return
        if not isinstance(schedule, NoiseSchedule):
            raise KindError(f"to read {prediction} as noise, pass the network's schedule, got {describe(schedule)}")
        signal, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
        of_x, of_output = (sigma, signal) if prediction == "v" else (1 / sigma, -signal / sigma)
        pure = signal == 0
        of_x, of_output = of_x.masked_fill(pure, 0), of_output.masked_fill(pure, 1 if prediction == "v" else -1)
        # tables on the network's device: looking t up must not wait for the host
        self.register_buffer("of_x", of_x.float(), persistent=False)
        self.register_buffer("of_output", of_output.float(), persistent=False)

    @property
    def num_classes(self) -> int | None:
        """Number of class labels the network knows, or None."""
        return getattr(self.network, "num_classes", None)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network was trained on."""
        return self.network.image_shape

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        output = self.output(x, t, labels)
        if isinstance(output, Tensor) and output.shape[1] == 2 * x.shape[1]:
            warnings.warn("the network also predicts a variance; its half of the channels is dropped", stacklevel=2)
            output = output[:, : x.shape[1]]
        if self.prediction == "eps":
            return output
        return self.of_x[t][:, None, None, None] * x + self.of_output[t][:, None, None, None] * output

    def output(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """What the network itself says."""
        return self.network(x, t) if labels is None else self.network(x, t, labels)


class VelocityDenoiser(PredictionDenoiser):
    """Reads a network's output as the velocity v and returns the noise, ε = √(1-ᾱ_t) x_t + √ᾱ_t v.

    With v = √ᾱ_t ε - √(1-ᾱ_t) x_0, the network answers "what is the noise?" at small t and "what is the image?" at large
    t: in each case the question that is still worth asking. Source: Salimans & Ho 2022, section 4 and appendix D.

    Args:
        network, schedule: as for :class:`PredictionDenoiser`.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__(network, schedule, "v")


class DiffusersDenoiser(PredictionDenoiser):
    """A `diffusers.UNet2DModel` as a denoiser. Its timesteps run over 0..T-1, ours over 1..T: t here is t - 1 there.

    Args:
        unet: called as unet(x, t, class_labels=...).
        num_classes: number of class labels it knows; by default, its `num_class_embeds`. Guidance asks for the class
            `num_classes` as "none", so a network that has a row for "none" counts one class less than it has rows.
        prediction: what its output means: our words, or what stands in its scheduler's `config.prediction_type`. The network
            itself does not say.
        schedule: the schedule that it was trained with; needed unless the prediction is ε.
    """

    def __init__(
        self,
        unet: Any,
        num_classes: int | None = None,
        prediction: str = "eps",
        schedule: NoiseSchedule | None = None,
    ) -> None:
        if hasattr(unet, "unet"):
            raise KindError(
                "this is a pipeline; pass its unet, and prediction=pipeline.scheduler.config.prediction_type"
            )
        super().__init__(unet, schedule, DIFFUSERS_WORDS.get(prediction, prediction))  # type: ignore[arg-type]
        self.label_rows = unet.config.num_class_embeds
        self._num_classes = self.label_rows if num_classes is None else num_classes

    @property
    def num_classes(self) -> int | None:
        return self._num_classes

    def output(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.network(x, t - 1, class_labels=labels).sample


class LabelledDenoiser(nn.Module):
    """A class-conditional network with its labels fixed: ε(x, t) = model(x, t, labels).

    Args:
        model: called as model(x, t, labels).
        labels: in 0..num_classes - 1: one label for each sample of the batch, as a list, an array or a tensor [B]; or an int,
            the label of all.

    Raises:
        ValueError: when the network has no labels, or a label is out of range; when called, if the batch has another size.
    """

    def __init__(self, model: Any, labels: Tensor | Sequence[int] | int) -> None:
        super().__init__()
        self.model = model
        self.labels = check_labels(labels, said_by(model, "num_classes"))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, self._labels_for(x))

    def _labels_for(self, x: Tensor) -> Tensor:
        """The labels on the device of x, to be kept: a copy at every step would make the host wait."""
        if self.labels.ndim and len(self.labels) != len(x):
            raise ValueError(
                f"{len(self.labels)} labels for a batch of {len(x)}; give one label for each sample, in their order"
            )
        self.labels = self.labels.to(x.device)
        return self.labels.expand(len(x))


class GuidedDenoiser(LabelledDenoiser):
    """Classifier-free guidance: ε̃ = ε(x, t) + scale · (ε(x, t, label) - ε(x, t)).

    Source: Ho & Salimans 2022, equation 6, with scale = 1 + w: 0 ignores the label, 1 is the conditional network, more
    than 1 exaggerates what the label asks for. Both halves run as one batch of 2B.

    Args:
        model: called as model(x, t, labels); labels equal to num_classes mean "none".
        labels: as for :class:`LabelledDenoiser`.
        scale: finite, at least 0.

    Raises:
        ValueError: as :class:`LabelledDenoiser`, for a bad scale, and when the network has no row for "none".
    """

    def __init__(self, model: Any, labels: Tensor | Sequence[int] | int, scale: float) -> None:
        super().__init__(model, labels)
        self.scale = check_number("the guidance scale", scale, 0, fix="1 means no guidance")
        self.none = int(said_by(model, "num_classes"))
        rows = said_by(model, "label_rows")
        if rows is not None and rows <= self.none:
            raise ValueError(
                f"guidance asks for the class {self.none} as 'none', but this network has rows 0..{rows - 1}; if its last one "
                f"means 'none', use DiffusersDenoiser(unet, num_classes={rows - 1})"
            )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        labels = self._labels_for(x)
        none = torch.full_like(labels, self.none)
        eps = self.model(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([none, labels]))
        unconditional, conditional = eps.chunk(2)
        return unconditional.lerp(conditional, self.scale)
