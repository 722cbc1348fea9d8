"""Trained networks: shipped ones by name, and any of your own in one safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimlib.data import DATASETS, PRETRAINED
from ddimlib.denoisers import VelocityDenoiser, check_model
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import check_tensors, read_tensors, write_tensors
from ddimlib.unet import UNet


def build_model(network: Mapping[str, Any], schedule: NoiseSchedule) -> VelocityDenoiser:
    """A fresh denoiser: a :class:`ddimlib.unet.UNet` made with the arguments `network`, read as a velocity."""
    unet = UNet(**network)
    unet.__dict__["arguments"] = dict(network)  # what it takes to build it again
    model = VelocityDenoiser(unet, schedule)
    model.register_state_dict_post_hook(_contiguous)
    return model


def _contiguous(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Weights in channels_last are handed out in plain order, as safetensors' own `save_file` wants them."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            state[name] = value.contiguous()


def save_model(
    path: str | Path,
    model: VelocityDenoiser,
    schedule: NoiseSchedule | None = None,
    network: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write weights, betas and the network's arguments to one safetensors file, atomically.

    Args:
        path: the file.
        model: a denoiser around a :class:`ddimlib.unet.UNet`.
        schedule: None: the model's own.
        network: the UNet's arguments; None: those that :func:`build_model` or :func:`load_model` made it with.
        half: round the weights to float16, in half the space; :func:`load_model` gives them back as float32.

    Raises:
        ValueError: when the network is none of ours, or holds NaN or infinity; TypeError: when it does not know its arguments.
    """
    unet, schedule = getattr(model, "network", None), schedule or getattr(model, "schedule", None)
    if schedule is not None:
        check_model(model, schedule)
    if schedule is None or not isinstance(unet, UNet):
        got = f"got {type(unet or model).__name__}"
        fix = "store another network by safetensors.torch.save_file(model.state_dict(), path)"
        raise ValueError(f"save_model stores a VelocityDenoiser around a UNet, {got}; {fix}")
    arguments = network or getattr(unet, "arguments", None)
    if not arguments:
        fix = "pass its arguments as `network`, or use build_model"
        raise TypeError(f"this UNet does not know what it was made with; {fix}")
    made = UNet(**network) if network else unet
    if {k: v.shape for k, v in made.state_dict().items()} != {k: v.shape for k, v in unet.state_dict().items()}:
        raise ValueError(f"`network` makes another UNet than the one to be stored, got {arguments}")
    weights = {f"network.{k}": v.half() if half else v for k, v in unet.state_dict().items()}
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(f"{bad[0]} holds NaN or infinity{' as float16' if half else ''}; such a model is not stored")
    write_tensors(path, weights | {"betas": schedule.beta[1:]}, {"network": dict(arguments)})


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[VelocityDenoiser, NoiseSchedule]:
    """Read what :func:`save_model` wrote, in eval mode and float32. Of a folder, the file model.safetensors in it.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, or does not hold a model.
    """
    path = Path(path, "model.safetensors") if Path(path).is_dir() else Path(path)
    tensors, facts = read_model(path)
    betas = tensors.pop("betas")
    try:
        network = dict(facts["network"])
        if sum(network.get("blocks", ())) > len(tensors):
            raise ValueError("more blocks than tensors")  # do not begin to build it
        schedule = NoiseSchedule(betas)
        model = build_model(network, schedule)
        dtype = next(iter(tensors.values())).dtype if tensors else torch.float32
        check_tensors(path, tensors, model.state_dict(), dtype if dtype.is_floating_point else torch.float32)
        model.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        reason = str(error) if str(path) in str(error) else f"{path} holds no model that can be built ({error})"
        raise ValueError(f"{reason}; fetch or make it again") from error
    return model.to(device).to(memory_format=torch.channels_last).eval(), schedule


def read_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of the file of a model."""
    tensors, facts = read_tensors(path)
    if "betas" not in tensors or "network" not in facts:
        raise ValueError(f"{path} was written by ddimlib but holds no model; did you mean the file model.safetensors?")
    return tensors, facts


def available() -> list[str]:
    """Names of the shipped networks."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors") if "-" not in path.stem)


def training_runs(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The cards of all training runs behind a network, the first one first, each of them once.

    A run may start from the weights of another, and a network may be the average of several. `card` is what stands in the
    JSON file beside the weights.
    """
    parts = card.get("averaged_from") or [card.get("started_from")]
    runs = [run for part in parts if part for run in training_runs(part)]
    if "averaged_from" not in card:
        runs.append(card)
    return [run for i, run in enumerate(runs) if run not in runs[:i]]


def load_pretrained(name: str, device: str | torch.device = "cpu") -> tuple[VelocityDenoiser, NoiseSchedule]:
    """A shipped network and its schedule, with no download: `model, schedule = load_pretrained("mnist")`.

    The model is a denoiser: model(x, t) without a label, model(x, t, labels) with int64 labels [B] in 0..9.

    `name` is one of :func:`available`; for another, a ValueError says how to make it, where it can be made.
    """
    if name not in available():
        how = f"; `ddimlib train {name}` makes it (on a CUDA GPU, if there is one), and load_model reads its file"
        shipped = ", ".join(available()) or "none"
        raise ValueError(f"no pretrained network {name!r}; shipped are: {shipped}{how if name in DATASETS else ''}")
    return load_model(PRETRAINED / f"{name}.safetensors", device)
