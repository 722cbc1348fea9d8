"""Muon, the optimiser of the hidden weights: a momentum step whose singular values have all been made about equal."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearly U Vᵀ of matrix = U S Vᵀ: every singular value that is not tiny ends between about 0.7 and 1.2.

    Each iteration maps a singular value s to a s + b s³ + c s⁵, with coefficients that lift small ones fast, by matrix
    products alone (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

    Args:
        matrix: one matrix [m, n] or several [..., m, n], floating; a matrix that is all zero comes back as zero.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # now no singular value exceeds 1
    if wide := x.shape[-2] > x.shape[-1]:
        x = x.mT  # the smaller Gram matrix is the cheaper one
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if wide else x


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """The weights Muon is meant for: of convolutions and linear layers between hidden features.

    Biases, norms, embeddings and the layers that touch the image's few channels are left to AdamW.
    """
    return [
        layer.weight
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and min(layer.weight.shape[:2]) >= 8
    ]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; scaled so that a weight moves about as far as under AdamW at the same rate.

    W ← (1 - lr · decay) W - 0.2 √max(m, n) · lr · orthogonalise(momentum), a convolution's kernel being read as the matrix
    [out, in · height · width] (Jordan et al. 2024; the factor: Liu et al. 2025, "Muon is scalable for LLM training",
    section 2.2). `torch.optim.Muon` takes matrices only and multiplies in bfloat16, which is slow on a processor without
    bfloat16 units; this one takes kernels too and stays in the weights' own precision.

    Args:
        params: the weights, each with two dimensions or more.
        lr: learning rate.
        momentum: decay of the average of the gradients, in [0, 1).
        weight_decay: decoupled, as AdamW's.

    Raises:
        ValueError: when a weight has fewer than two dimensions.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"]]
        if bad := [shape for shape in shapes if len(shape) < 2]:
            raise ValueError(f"Muon takes weights of two dimensions or more, got {bad}; give those to AdamW")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients that the weights hold; weights without one stay."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for shape, weights in by_shape.items():  # in one batch: on a GPU, launches are what this costs
                for weight in weights:
                    if not self.state[weight]:
                        self.state[weight]["momentum"] = torch.zeros_like(weight)
                gradients = [weight.grad for weight in weights if weight.grad is not None]
                averages = [self.state[weight]["momentum"] for weight in weights]
                torch._foreach_lerp_(averages, gradients, 1 - momentum)
                directions = torch._foreach_lerp(gradients, averages, momentum)
                updates = orthogonalise(torch.stack([direction.flatten(1) for direction in directions]))
                rate = 0.2 * max(updates.shape[1:]) ** 0.5 * lr
                torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
                torch._foreach_add_(weights, [update.reshape(shape) for update in updates], alpha=-rate)
