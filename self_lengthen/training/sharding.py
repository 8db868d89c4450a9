"""How the weights lie on the GPUs that train one role: in the fastest way that fits their memory.

docs/performance.md has what each way costs.
"""

from collections.abc import Sequence

from self_lengthen.devices import Gpu
from self_lengthen.model import BaseModel
from self_lengthen.training.config import DEALT_OUT, OFFLOADED, WHOLE, TrainingValues

AUTO = "auto"

MEMORY_SHARE = 0.9  # of a GPU's memory; the rest is CUDA's, and what lies between blocks
# In bytes of a weight of 16 bits: an adapter has next to nothing, all weights have gradients in 16
# bits, and a copy and two moments in 32. ZeRO paper (arXiv 1910.02054), section 3.1.
STATES = {"lora": 1, "full": 8}
# Activations of one layer at work, for each of its hidden and intermediate numbers. Measured: 6.4
# with a fused loss (bench/training.py, Qwen2-7B's shape, 16k tokens, 2026-11-27).
LAYER_AT_WORK = 8


def choose_sharding(
    wish: str,
    model: BaseModel,
    values: TrainingValues,
    gpus: Sequence[Gpu],
    devices: int,
    finetuning: str = "lora",
) -> str | None:
    """One of SHARDINGS: `wish`, where that is not AUTO. None without `gpus`, those of this node.

    `devices` of all nodes train one role together. Where the model's sizes or the GPUs' memory are
    not known, ZeRO-3 without the host.
    """
    if not gpus:
        return None
    if wish != AUTO:
        return wish
    room = MEMORY_SHARE * min(gpu.memory_mib for gpu in gpus) * 2**20
    if not (room and model.weight_bytes and model.layers):
        return DEALT_OUT
    states = STATES[finetuning] * model.weight_bytes
    working = activation_bytes(model, values)
    if finetuning == "lora" and states + working <= room:
        return WHOLE
    return DEALT_OUT if states / devices + working <= room else OFFLOADED


def activation_bytes(model: BaseModel, values: TrainingValues) -> int:
    """Of the largest batch of a GPU, in 16 bits: every layer's input, and one layer at work."""
    tokens = values.device_batch * values.cutoff_len
    layer = LAYER_AT_WORK * (model.hidden_size + model.intermediate_size)
    return 2 * tokens * (model.layers * model.hidden_size + layer)
