"""Trained networks: shipped ones by name, and any of your own in one safetensors file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    tensors, facts = _read_model(path)
    schedule = NoiseSchedule(tensors.pop("betas"))
    model = build_model(facts["network"], schedule)
    model.load_state_dict(tensors)
    return model.to(device).to(memory_format=torch.channels_last).eval(), schedule


def _read_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = read_tensors(path)
    if "betas" not in tensors or "network" not in facts:
        raise ValueError(f"{path} was written by ddimlib but holds no model; did you mean the file model.safetensors?")
    return tensors, facts


def average_models(paths: Sequence[str | Path], out: str | Path) -> None:
    """Write the model whose weights are the means of those of several models, a *soup* (Wortsman et al. 2022).

    It is good when the models were trained on from one common start: each then errs in its own way, and what they have in
    common remains. Models that were trained from different random weights have nothing in common, and neither has their mean.

    Args:
        paths: two or more files of :func:`save_model`.
        out: the file to write.

    Raises:
        ValueError: when there are fewer than two, or their networks or schedules differ.
    """
    if len(paths) < 2:
        raise ValueError(f"an average needs at least two models, got {len(paths)}")
    files = [_read_model(path) for path in paths]
    tensors, facts = files[0]
    for path, (others, their_facts) in zip(paths, files, strict=True):
        if their_facts != facts or not torch.equal(others["betas"], tensors["betas"]):
            raise ValueError(f"{path} has another network or schedule than {paths[0]}; average models of one kind")
    means = {
        name: torch.stack([others[name].double() for others, _ in files]).mean(0).to(tensor.dtype)
        for name, tensor in tensors.items()
        if name != "betas"
    }
    write_tensors(out, means | {"betas": tensors["betas"]}, facts)


def available() -> list[str]:
    """Names of the shipped networks."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors") if "-" not in path.stem)


def training_runs(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The cards of all training runs behind a network, the first one first, each of them once.

    A run may start from the weights of another, and a network may be the average of several.

    Args:
        card: what stands in the JSON file beside the weights.
    """
    parts = card.get("averaged_from") or [card.get("started_from")]
    runs = [run for part in parts if part for run in training_runs(part)]
    if "averaged_from" not in card:
        runs.append(card)
    return [run for i, run in enumerate(runs) if run not in runs[:i]]


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
