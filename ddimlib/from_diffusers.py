"""Networks of the library diffusers as denoisers."""

from typing import Any

from torch import Tensor

from ddimlib.arguments import KindError, describe
from ddimlib.denoisers import PredictionDenoiser
from ddimlib.schedule import NoiseSchedule

WORDS: dict[str, str] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""Predictions, by the names that they have in `config.prediction_type` of a scheduler there."""


class DiffusersDenoiser(PredictionDenoiser):
    """A `diffusers.UNet2DModel` as a denoiser. Its timesteps run over 0..T-1, ours over 1..T: t here is t - 1 there.

    Args:
        unet: called as unet(x, t, class_labels=...).
        num_classes: number of class labels it knows; by default, its `num_class_embeds`. Guidance asks for the class
            `num_classes` as "none", so a network that has a row for "none" counts one class less than it has rows.
        prediction: in our words, or those of its scheduler's `config.prediction_type`; the network itself does not say.
        schedule: the schedule that it was trained with; needed unless the prediction is ε.
    """

    def __init__(
        self, unet: Any, num_classes: int | None = None, prediction: str = "eps", schedule: NoiseSchedule | None = None
    ) -> None:
        if hasattr(unet, "unet") or not hasattr(unet, "config"):
            fix = "of a pipeline, pass its unet, and prediction=pipeline.scheduler.config.prediction_type"
            raise KindError(f"unet must be a network of diffusers, got {describe(unet)}; {fix}")
        super().__init__(unet, schedule, WORDS.get(prediction, prediction))  # type: ignore[arg-type]
        self.label_rows = unet.config.num_class_embeds
        self.num_classes = self.label_rows if num_classes is None else num_classes

    def output(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.network(x, t - 1, class_labels=labels).sample
