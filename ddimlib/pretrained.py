"""Trained networks: shipped ones by name, and any of your own in one safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddimlib.data import DATASETS, PRETRAINED
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import read_tensors, write_tensors
from ddimlib.unet import UNet


def build_model(network: Mapping[str, Any], schedule: NoiseSchedule) -> VelocityDenoiser:
    """A fresh denoiser: a :class:`ddimlib.unet.UNet` made with the arguments `network`, read as a velocity."""
    return VelocityDenoiser(UNet(**network), schedule)


def save_model(
    path: str | Path, model: VelocityDenoiser, schedule: NoiseSchedule, network: Mapping[str, Any], half: bool = False
) -> None:
    """Write weights, betas and the network's arguments to one safetensors file, atomically.

    With `half`, the weights are rounded to float16, in half the space; :func:`load_model` gives them back as float32.
    """
    weights = {f"network.{k}": v.half() if half else v for k, v in model.network.state_dict().items()}
    write_tensors(path, weights | {"betas": schedule.beta[1:]}, {"network": dict(network)})


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[VelocityDenoiser, NoiseSchedule]:
    """Read what :func:`save_model` wrote, in eval mode.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, or does not hold a model.
    """
    tensors, facts = read_tensors(path)
    if "betas" not in tensors or "network" not in facts:
        raise ValueError(f"{path} was written by ddimlib but holds no model; did you mean the file model.safetensors?")
    schedule = NoiseSchedule(tensors.pop("betas"))
    model = build_model(facts["network"], schedule)
    model.load_state_dict(tensors)
    return model.to(device).to(memory_format=torch.channels_last).eval(), schedule


def available() -> list[str]:
    """Names of the shipped networks."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors") if "-" not in path.stem)


def training_runs(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The cards of all training runs behind a network, the first one first: a run may start from the weights of another.

    Args:
        card: what stands in the JSON file beside the weights.
    """
    before = card.get("started_from")
    return [*(training_runs(before) if before else []), card]


def load_pretrained(name: str, device: str | torch.device = "cpu") -> tuple[VelocityDenoiser, NoiseSchedule]:
    """A shipped network and its schedule, with no download: `model, schedule = load_pretrained("mnist")`.

    The model is a denoiser: model(x, t) without a label, model(x, t, labels) with int64 labels [B] in 0..9.

    Args:
        name: one of :func:`available`.
        device: where to put it.

    Raises:
        ValueError: when no network of that name is shipped; where it can be made, it says how.
    """
    if name not in available():
        make = (
            f"; `python -m ddimlib train {name}` makes it (on a CUDA GPU, if there is one), and load_model reads its file"
            if name in DATASETS
            else ""
        )
        raise ValueError(f"no pretrained network {name!r}; shipped are: {', '.join(available()) or 'none'}{make}")
    return load_model(PRETRAINED / f"{name}.safetensors", device)
