"""Where a result comes from: the settings that it depends on, and the command, versions, device and date that made it."""

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddimlib import __version__
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import digest


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Facts to be stored beside every measured number."""
    device = torch.device(device)
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun sets it
    script = Path(sys.argv[0])
    program = ["/".join(script.parts[-2:])] if script.parent.name in ("benchmarks", "tools") else ["-m", "ddimlib"]
    launcher = ["python"] if processes == "1" else ["torchrun", "--nproc-per-node", processes]
    return {
        "command": shlex.join([*launcher, *program, *sys.argv[1:]]),
        "ddimlib": __version__,
        "torch": torch.__version__.split("+")[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU, {torch.get_num_threads()} threads, {name}"


def weights_digest(model: torch.nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights: which network a result belongs to."""
    return digest(model.state_dict())[:16]


def model_settings(model: torch.nn.Module, schedule: NoiseSchedule) -> dict[str, Any]:
    """What a result depends on in a model: its weights, their precision, the network around them, and the schedule."""
    network = getattr(model, "network", model)
    return {
        "weights": weights_digest(model),
        "precision": str(next((p.dtype for p in model.parameters()), torch.float32)).removeprefix("torch."),
        "network": getattr(network, "arguments", type(network).__name__),
        "betas": digest({"betas": schedule.beta[1:]})[:16],
    }


def check_settings(path: str | Path, found: Any, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless an output was made with the settings that it would now be continued with.

    Args:
        path: the output.
        found: the settings stored in it; what is not an object differs in everything.
        wanted: those of the run that wants to go on with it, JSON-able.
    """
    theirs, ours = _flat(found), _flat(json.loads(json.dumps(wanted)))
    fix = "repeat that run's options, choose another output, or remove that one"
    if not theirs:
        raise ValueError(f"{path} does not say with what settings it was made, so it belongs to another run; {fix}")
    different = [key for key in {**ours, **theirs} if (key in theirs, theirs.get(key)) != (key in ours, ours.get(key))]
    if different:
        named = "; ".join(f"{k} = {theirs.get(k, 'not set')!r}, not {ours.get(k, 'not set')!r}" for k in different)
        raise ValueError(f"{path} belongs to a run with other settings ({named}); {fix}")


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names: {"config": {"seed": 0}} becomes {"config.seed": 0}."""
    if not isinstance(settings, dict):
        return {}
    nested = [_flat(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {prefix + k: v} for k, v in settings.items()]
    return {key: value for part in nested for key, value in part.items()}
