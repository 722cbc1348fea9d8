"""Denoising Diffusion Implicit Models, small enough to read.

>>> from ddimlib import load_pretrained, sample
>>> model, schedule = load_pretrained("mnist")
>>> images = sample(model, schedule, shape=(16, 1, 28, 28), steps=20, seed=0)
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ddimlib.acceleration import accelerate
from ddimlib.denoisers import PredictionDenoiser, VelocityDenoiser
from ddimlib.from_diffusers import DiffusersDenoiser
from ddimlib.guidance import GuidedDenoiser, LabelledDenoiser
from ddimlib.inversion import invert
from ddimlib.latents import SeededNoise, lerp, sample_seeds, slerp
from ddimlib.multistep import ddim_ab2
from ddimlib.oracle import GaussianMixture, gaussian
from ddimlib.samplers import ddim, ddim_sigma, ddim_step, ddpm, ddpm_step, last, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.timesteps import timesteps
from ddimlib.unet import UNet

if TYPE_CHECKING:
    from ddimlib.data import bundled_sample, load_dataset, to_bytes, to_model_range
    from ddimlib.plotting import save_images, show_images
    from ddimlib.pretrained import load_model, load_pretrained, save_model
    from ddimlib.training import Trainer, TrainingConfig

LAZY = {
    "bundled_sample": "data", "load_dataset": "data", "to_bytes": "data", "to_model_range": "data",
    "save_images": "plotting", "show_images": "plotting",
    "load_model": "pretrained", "load_pretrained": "pretrained", "save_model": "pretrained",
    "Trainer": "training", "TrainingConfig": "training",
}  # fmt: skip
"""Names that are imported when they are first used: what is behind them (matplotlib, torchvision) takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'ddimlib' has no attribute {name!r}")
    return getattr(import_module(f"ddimlib.{LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})


__all__ = [
    "DiffusersDenoiser", "GaussianMixture", "GuidedDenoiser", "LabelledDenoiser", "NoiseSchedule",
    "PredictionDenoiser", "SeededNoise", "Trainer", "TrainingConfig", "UNet", "VelocityDenoiser", "accelerate",
    "bundled_sample", "ddim", "ddim_ab2", "ddim_sigma", "ddim_step", "ddpm", "ddpm_step", "gaussian", "invert",
    "last", "lerp", "load_dataset", "load_model", "load_pretrained", "sample", "sample_seeds", "save_images",
    "save_model", "show_images", "slerp", "timesteps", "to_bytes", "to_model_range",
]  # fmt: skip
