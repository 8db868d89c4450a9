"""LLaMA-Factory's configuration of one role's fine-tuning, from one template for both roles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from self_lengthen.errors import UserError
from self_lengthen.files import write_atomic, write_json

WEIGHT_DECAY = 0.0
# Of the weights over the GPUs that train one role: each has all of them; they are dealt out by
# DeepSpeed's ZeRO-3; the same, and what is not at work lies in the host's memory.
WHOLE, DEALT_OUT, OFFLOADED = SHARDINGS = ("none", "zero3", "zero3_offload")


@dataclass(frozen=True)
class TrainingValues:
    """The defaults are the paper's release's, but for the batch: there it was one text a GPU."""

    learning_rate: float = 1e-4
    epochs: float = 4.0
    warmup_ratio: float = 0.1
    lora_rank: int = 8
    lora_alpha: int = 16
    cutoff_len: int = 16384  # tokens of prompt and response
    global_batch: int = 8  # texts an optimisation step sees over all devices
    device_batch: int = 1  # texts that a device holds at once


def gradient_accumulation(values: TrainingValues, devices: int) -> int:
    """Backward passes of each device before an optimisation step.

    Raises UserError when the global batch is no multiple of what all devices hold at once.
    """
    at_once = values.device_batch * devices
    if values.global_batch % at_once:
        raise UserError(
            f"--global_batch={values.global_batch}: is no multiple of {at_once} (--device_batch="
            f"{values.device_batch} on {devices} devices); give one that is"
        )
    return values.global_batch // at_once


def sft_config(
    role: str,
    *,
    base_model: str,
    template: str,
    data: Path,
    output: Path,
    previous_adapter: Path | None,
    values: TrainingValues,
    devices: int,
    sharding: str | None,
    seed: int,
    trust_remote_code: bool = False,
    finetuning: str = "lora",
) -> dict[str, Any]:
    """LLaMA-Factory's arguments for the training of one role, which `devices` train together.

    `finetuning`: "lora", or "full" for all weights. `sharding`: one of SHARDINGS; None on the CPU.
    """
    config: dict[str, Any] = {
        "model_name_or_path": base_model,
        "trust_remote_code": trust_remote_code,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": finetuning,
        "dataset_dir": str(data),
        "dataset": role,
        "template": template,
        "cutoff_len": values.cutoff_len,
        "preprocessing_num_workers": 1,
        "output_dir": str(output),
        "per_device_train_batch_size": values.device_batch,
        "gradient_accumulation_steps": gradient_accumulation(values, devices),
        "learning_rate": values.learning_rate,
        "num_train_epochs": values.epochs,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": values.warmup_ratio,
        "weight_decay": WEIGHT_DECAY,
        "logging_steps": 1,
        "plot_loss": True,
        "report_to": "none",
        "save_strategy": "epoch",  # a restart continues from the last finished epoch
        "save_total_limit": 1,
        "seed": seed,
    }
    if finetuning == "lora":
        lora = {"lora_target": "all", "lora_rank": values.lora_rank}
        config |= {**lora, "lora_alpha": values.lora_alpha}
    if previous_adapter is not None:  # each iteration goes on with the adapters of the one before
        config["adapter_name_or_path"] = str(previous_adapter)
        config["create_new_adapter"] = False
    if sharding is not None:
        config["bf16"] = True
        config["enable_liger_kernel"] = True  # the loss without all logits at once, half the memory
        if sharding != WHOLE:
            config["deepspeed"] = str(output.parent / f"{sharding}.json")
    return config


def zero3(offload: bool, finetuning: str) -> dict[str, Any]:
    """DeepSpeed ZeRO-3; "auto" is filled in by the trainer."""
    host = {"device": "cpu", "pin_memory": True}
    moved = {"offload_param": host} if offload else {}
    if offload and finetuning == "full":  # an adapter's optimizer is small
        moved["offload_optimizer"] = host
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
            **moved,
        },
    }


def write_config(config: dict[str, Any], path: Path) -> None:
    write_atomic(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    if "deepspeed" in config:
        file = Path(config["deepspeed"])
        write_json(file, zero3(file.stem == OFFLOADED, config["finetuning_type"]))
