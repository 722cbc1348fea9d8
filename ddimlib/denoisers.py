"""What a denoiser is, how a sampler asks it, and wrappers that make one out of something else.

Each wrapper is an `nn.Module`, so that samplers can find the network inside it, its device, its dtype and its mode.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ddimlib.arguments import KindError, check_choice, check_finite, check_floats, describe
from ddimlib.schedule import NoiseSchedule, check_schedule
from ddimlib.timesteps import Steps, check_timesteps

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""eps = model(x, t): x [B, C, H, W], t int64 [B] in 1..T, eps of x's shape."""

Prediction = Literal["eps", "x0", "v"]
"""What a network's output means, which is the noise ε, the image x_0, or the velocity v = √ᾱ_t ε - √(1-ᾱ_t) x_0."""


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
    check_schedule(schedule)
    if not callable(model):
        fix = 'model, schedule = load_pretrained("mnist") gives one'
        raise KindError(f"model must be a callable eps = model(x, t), got {describe(model)}; {fix}")
    own = said_by(model, "schedule")
    if isinstance(own, NoiseSchedule) and not own.same_as(schedule):
        raise ValueError(f"this model was made for {own}, but it is used with {schedule}; pass model.schedule")


class Asked:
    """ε = model(x, t) with one t for the whole batch, as every sampler asks.

    The network is in eval mode while it is asked, and put back after every evaluation, so that a walk that is interrupted or
    abandoned leaves nothing behind. Threads may share a network: it goes back to training mode when the last evaluation in
    progress ends. It is asked in its own dtype, and its answer has the dtype of x. If it works in place, it is given copies
    of x. Answers carry no gradient unless `differentiable`. `start` is the x [B, C, H, W] that a walk starts from.

    A ValueError says when that is not floating point and finite, or when an answer has another shape, is not floating point,
    or lacks the gradient.
    """

    def __init__(self, model: Denoiser, x: Tensor, differentiable: bool = False) -> None:
        check_finite("x_T", x)
        self.model, self.differentiable = model, differentiable
        self.start = x if differentiable else x.detach()
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        # to write into vars(module) takes a tenth of the time of module.training = ...
        self.modes = [vars(m) if "training" in vars(m) else _ModeElsewhere(m) for m in modules]
        weights = (p.dtype for m in modules for p in m.parameters(recurse=False) if p.is_floating_point())
        self.dtype: torch.dtype | None = said_by(model, "input_dtype") or next(weights, None)
        self.copies = True  # until the first answer shows that none are needed

    def __call__(self, x: Tensor, t: int) -> Tensor:
        given = x if self.dtype is None or self.dtype == x.dtype else x.to(self.dtype)
        if given is x and (self.copies or x.is_inference()):
            given = x.clone()
        counts = not given.is_inference()  # tensors made in inference mode do not count their changes
        before = given._version if counts else 0
        borrowed: list[Any] = []
        gradients = torch.is_grad_enabled()
        try:
            _borrow(self.modes, borrowed)
            torch.set_grad_enabled(self.differentiable and gradients)
            eps = self.model(given, torch.full((x.size(0),), t, dtype=torch.int64, device=x.device))
        finally:
            try:
                _give_back(borrowed, gradients)
            except BaseException:  # Ctrl-C arrived just here
                _give_back(borrowed, gradients)
                raise
        changed = counts and given._version != before
        if given is x and changed:
            raise RuntimeError(f"the network changed its input in place at t = {t}, but not before; give it a copy")
        self.copies = self.copies and changed
        fix = "wrap it, as in lambda x, t: network(x, t)[0], or DiffusersDenoiser(unet)"
        check_floats("the answer of a denoiser", eps, fix)
        if eps.shape != x.shape:
            fix = "PredictionDenoiser(network) drops a variance that a network also predicts"
            raise ValueError(f"a denoiser must return the shape of x, {tuple(x.shape)}, got {tuple(eps.shape)}; {fix}")
        if self.differentiable and not eps.requires_grad:
            why = "neither x nor a weight requires one, or it runs under torch.no_grad or was accelerated"
            raise ValueError(f"the answer carries no gradient: {why}; differentiate through the plain network")
        return eps if eps.dtype == x.dtype else eps.to(x.dtype)


def begin(
    model: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: Steps | None, differentiable: bool
) -> tuple[Asked, list[int]]:
    """What every walk begins with: the network to be asked, and the timesteps, None standing for all of them."""
    check_model(model, schedule)
    asked = Asked(model, x, differentiable)
    visited = check_timesteps(schedule.T, schedule.T if steps is None else steps)
    if said_by(model, "prediction") not in ("v", "x0"):  # they know x_0 where ᾱ_t = 0
        schedule.check_noise_is_known(visited[0])
    return asked, visited


def predict_noise(model: Denoiser, x: Tensor, t: int) -> Tensor:
    """ε = model(x, t) with one t for the batch, once, as samplers ask: see :class:`Asked`."""
    return Asked(model, x)(x, t)


class _ModeElsewhere:
    """Stands for vars(module) where "training" is not among them, as in compiled and scripted modules."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getitem__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.module, name, value)


_lock = threading.Lock()
_borrowed: dict[int, list[Any]] = {}  # of each evaluation in progress, what goes back to training mode


def _borrow(modes: Sequence[Any], mine: list[Any]) -> None:
    """Put modules, given by their vars, in eval mode; `mine` receives those that belong in training mode."""
    with _lock:
        needed = {id(mode) for others in _borrowed.values() for mode in others}
        mine += [mode for mode in modes if mode["training"] or (needed and id(mode) in needed)]
        if mine:
            _borrowed[id(mine)] = mine
        for mode in mine:
            mode["training"] = False


def _give_back(mine: list[Any], gradients: bool) -> None:
    """Put modules in training mode again, but for those that another evaluation still needs; and torch in its gradient mode."""
    torch.set_grad_enabled(gradients)
    if not mine:
        return
    with _lock:
        _borrowed.pop(id(mine), None)
        needed = {id(mode) for others in _borrowed.values() for mode in others}
        for mode in mine:
            mode["training"] = id(mode) not in needed


class PredictionDenoiser(nn.Module):
    """Reads a network's output as ε, x_0 or v, and returns the noise ε, a multiple of x_t and one of the output:

    "eps": ε = output.  "x0": ε = (x_t - √ᾱ_t output)/√(1-ᾱ_t).  "v": ε = √(1-ᾱ_t) x_t + √ᾱ_t output (Salimans & Ho 2022,
    section 4 and appendix D).

    Where ᾱ_T = 0, ε is x_T itself and says nothing about x_0. There, and only there, the answer is the velocity, -x̂_0, which
    samplers expect there: so a network that predicts v or x_0 can be used with a schedule that ends in pure noise.

    Args:
        network: called as network(x, t, labels), or network(x, t) when no labels are given; [B, C, H, W]. If it returns 2C
            channels, the second half, a learned variance, is dropped, with a warning. What it says of itself is handed on: the
            number of its classes, `num_classes`, and the shape (C, H, W) of its images, `image_shape`.
        schedule: the schedule that it was trained with; only a network that predicts ε can do without.
        prediction: what its output means.
    """

    of_x: Tensor
    of_output: Tensor
    image_shape: tuple[int, int, int]

    def __init__(self, network: Any, schedule: NoiseSchedule | None = None, prediction: Prediction = "eps") -> None:
        super().__init__()
        check_choice("prediction", prediction, get_args(Prediction))
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.num_classes: int | None = getattr(network, "num_classes", None)
        if hasattr(network, "image_shape"):
            self.image_shape = network.image_shape
        if prediction == "eps":
            return
        ab = check_schedule(schedule).alpha_bar
        signal, sigma = ab.sqrt(), (1 - ab).sqrt()
        of_x, of_output, velocity = (sigma, signal, 1) if prediction == "v" else (1 / sigma, -signal / sigma, -1)
        for name, table, at_pure_noise in (("of_x", of_x, 0), ("of_output", of_output, velocity)):
            # on the network's device: looking t up must not wait for the host
            self.register_buffer(name, table.masked_fill(signal == 0, at_pure_noise).float(), persistent=False)

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
    """Reads a network's output as the velocity v = √ᾱ_t ε - √(1-ᾱ_t) x_0: "what is the noise?" at small t, "what is the image?"
    at large t, in each case the question that is still worth asking (Salimans & Ho 2022)."""

    def __init__(self, network: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__(network, schedule, "v")
