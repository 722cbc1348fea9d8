"""Where a number comes from: command, versions, device and date, for cards and result files."""

import datetime
import os
import platform
import shlex
import sys
from typing import Any

import torch

from ddimlib import __version__


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Facts to be stored beside every measured number."""
    device = torch.device(device)
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun sets it
    launcher = ["python"] if processes == "1" else ["torchrun", "--nproc-per-node", processes]
    return {
        "command": shlex.join([*launcher, "-m", "ddimlib", *sys.argv[1:]]),
        "ddimlib": __version__,
        "torch": torch.__version__.split("+")[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU, {torch.get_num_threads()} threads, {name}"
