"""Muon (Keller Jordan et al., 2024): momentum made orthogonal, for a model's hidden matrices.

torch.optim.Muon does its Newton-Schulz steps in bfloat16, which a CPU without such instructions
does ten times slower than float32: hence this one.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients and number of steps: the authors'
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Scaled to the size of AdamW's steps, as in Moonlight: 0.2 x sqrt(longer side) x lr."""

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                moves = orthogonal(torch.stack([self._momentum(m) for m in matrices]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, move in zip(matrices, moves, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(move, alpha=rate)

    def _momentum(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        mean = state.setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(mean, MOMENTUM)


def orthogonal(batch: torch.Tensor) -> torch.Tensor:
    """About U V^T of each matrix's singular value decomposition; shape (count, rows, columns)."""
    tall = batch.shape[1] > batch.shape[2]
    x = batch.mT if tall else batch
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
