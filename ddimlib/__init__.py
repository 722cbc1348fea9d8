"""Denoising Diffusion Implicit Models, small enough to read.

>>> from ddimlib import load_pretrained, sample
>>> model, schedule = load_pretrained("mnist")
>>> images = sample(model, schedule, shape=(16, 1, 28, 28), steps=20, seed=0)
"""

__version__ = "0.1.0"

from ddimlib.acceleration import accelerate
from ddimlib.data import bundled_sample, load_dataset
from ddimlib.denoisers import DiffusersDenoiser, GuidedDenoiser, LabelledDenoiser, VelocityDenoiser
from ddimlib.inversion import invert
from ddimlib.latents import SeededNoise, lerp, sample_seeds, slerp
from ddimlib.multistep import ddim_ab2
from ddimlib.oracle import GaussianMixture, gaussian
from ddimlib.pretrained import load_model, load_pretrained, save_model
from ddimlib.samplers import ddim, ddim_sigma, ddim_step, ddpm, ddpm_step, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.timesteps import timesteps
from ddimlib.unet import UNet

__all__ = [
    "DiffusersDenoiser",
    "GaussianMixture",
    "GuidedDenoiser",
    "LabelledDenoiser",
    "NoiseSchedule",
    "SeededNoise",
    "UNet",
    "VelocityDenoiser",
    "accelerate",
    "bundled_sample",
    "ddim",
    "ddim_ab2",
    "ddim_sigma",
    "ddim_step",
    "ddpm",
    "ddpm_step",
    "gaussian",
    "invert",
    "lerp",
    "load_dataset",
    "load_model",
    "load_pretrained",
    "sample",
    "sample_seeds",
    "save_model",
    "slerp",
    "timesteps",
]
