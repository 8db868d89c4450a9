"""LoRA on vLLM's CPU backend: one product for all tokens of an adapter.

vLLM's own (0.28.0) copies the adapter's weights once for every token of a batch, prompts included,
and takes some adapter's for a token that is to have none, when others of the batch have one.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker

Rows = slice | torch.Tensor


class GroupedLoraWorker(CPUWorker):
    """vLLM's worker on the CPU; give its name as the engine's `worker_cls`."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        name = f"{GroupedLora.__module__}.{GroupedLora.__qualname__}"
        current_platform.get_punica_wrapper = lambda: name
        return super().load_model(*args, **kwargs)


class GroupedLora(PunicaWrapperCPU):
    """Adapters' weights lie in slots: A of shape (slots, 1, rank, in), B (slots, 1, out, rank)."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._of_tokens = rows_by_slot(self.token_lora_indices)
        self._of_samples = rows_by_slot(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Adds x A^T B^T `scale` to the next `output_slices` columns of `y`, for each pair A, B."""
        start = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            add_products(y[:, start : start + size], x, a, b, scale, self._of_tokens)
            start += size

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        width = min(y.shape[-1], lora_b_stacked.shape[-2])  # either may be padded
        y, b = y[:, :width], lora_b_stacked[..., :width, :]
        add_products(y, x, lora_a_stacked, b, scale, self._of_samples)


def rows_by_slot(slots: torch.Tensor) -> list[tuple[int, Rows]]:
    """(slot, its rows of the batch) for every slot in use; -1 is a row without an adapter."""
    found = slots.unique().tolist()
    return [
        (slot, slice(None) if len(found) == 1 else (slots == slot).nonzero()[:, 0])
        for slot in found
        if slot >= 0
    ]


def add_products(
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    groups: list[tuple[int, Rows]],
) -> None:
    for slot, rows in groups:
        narrow, wide = x[rows] @ a[slot, 0].T, b[slot, 0].T
        if isinstance(rows, slice):  # all of them
            y.addmm_(narrow, wide, alpha=scale)
        else:
            y.index_add_(0, rows, narrow @ wide, alpha=scale)
