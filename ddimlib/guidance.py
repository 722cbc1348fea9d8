"""Denoisers for classes: a network with its labels fixed, and classifier-free guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddimlib.arguments import check_as_many, check_labels, check_number
from ddimlib.denoisers import said_by

Labels = Tensor | Sequence[int] | int
"""Integers [B] in 0..num_classes - 1, one label a sample, as a list, an array or a tensor; or an int, the label of all."""


class LabelledDenoiser(nn.Module):
    """A class-conditional network with its labels, see :data:`Labels`, fixed: ε(x, t) = model(x, t, labels).

    A ValueError says when the network has no labels, a label is out of range, or a batch has another size.
    """

    def __init__(self, model: Any, labels: Labels) -> None:
        super().__init__()
        self.model = model
        self.labels = check_labels(labels, said_by(model, "num_classes"))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, self.labels_for(x))

    def labels_for(self, x: Tensor) -> Tensor:
        """The labels on the device of x, to be kept: a copy at every step would make the host wait."""
        if self.labels.ndim:
            check_as_many(self.labels, len(x))
        self.labels = self.labels.to(x.device)
        return self.labels.expand(len(x))


class GuidedDenoiser(LabelledDenoiser):
    """Classifier-free guidance: ε̃ = ε(x, t) + scale · (ε(x, t, label) - ε(x, t)).

    Source: Ho & Salimans 2022, equation 6, with scale = 1 + w ≥ 0: 0 ignores the label, 1 is the conditional network, more
    than 1 exaggerates what the label asks for. Both halves run as one batch of 2B. The model is called as model(x, t, labels),
    and has a row for labels equal to num_classes, which mean "none".
    """

    def __init__(self, model: Any, labels: Labels, scale: float) -> None:
        super().__init__(model, labels)
        self.scale = check_number("the guidance scale", scale, 0, 1e4, fix="1 means no guidance")
        self.none, rows = int(said_by(model, "num_classes")), said_by(model, "label_rows")
        if rows is not None and rows <= self.none:
            fix = f"if its last one means 'none', use DiffusersDenoiser(unet, num_classes={rows - 1})"
            got = f"this network has rows 0..{rows - 1}"
            raise ValueError(f"guidance asks for the class {self.none} as 'none', but {got}; {fix}")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        labels = self.labels_for(x)
        asked = torch.cat([torch.full_like(labels, self.none), labels])
        unconditional, conditional = self.model(x.repeat(2, 1, 1, 1), t.repeat(2), asked).chunk(2)
        return unconditional.lerp(conditional, self.scale)


def conditioned(model: Any, labels: Labels | None, guidance: float = 1.0) -> Any:
    """`model` asked for classes: with labels a :class:`LabelledDenoiser`, with guidance a :class:`GuidedDenoiser`."""
    if labels is None:
        return model
    return LabelledDenoiser(model, labels) if guidance == 1 else GuidedDenoiser(model, labels, guidance)
