"""One plain model folder from a base model and what was trained on it.

    python -m self_lengthen.training.merge --base_model=DIR --trained=DIR --output=DIR

`trained` is a LoRA adapter, which is merged into the base model's weights, or a model that was
trained in full. Reads on the CPU, in the base model's own precision; writes --output, which exists
only when it is complete: the weights, and tokenizer and chat template exactly as the base model has
them. vLLM and transformers load it like any model.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from self_lengthen.errors import UserError, main_exit

WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
)


def merge(base_model: Path, trained: Path, output: Path, trust_remote_code: bool = False) -> None:
    beside = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    model = _model(base_model, trained, trust_remote_code)
    model.save_pretrained(beside)
    copy_companions(base_model, beside)
    beside.rename(output)


def _model(base_model: Path, trained: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = AutoConfig.from_pretrained(base_model, trust_remote_code=trust_remote_code).dtype
    is_adapter = (trained / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(
        base_model if is_adapter else trained,
        dtype=dtype or "auto",
        trust_remote_code=trust_remote_code,
    )
    if not is_adapter:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, trained).merge_and_unload(safe_merge=True)


def copy_companions(base_model: Path, output: Path) -> None:
    """Tokenizer, chat template, code: all files of the base model that are not its weights.

    config.json stays the one that was saved with the weights.
    """
    weights = {path for pattern in WEIGHTS for path in base_model.glob(pattern)}
    for path in base_model.iterdir():
        if path.is_file() and path not in weights and path.name != "config.json":
            shutil.copyfile(path, output / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base_model", type=Path, required=True)
    parser.add_argument("--trained", type=Path, required=True, help="adapter, or whole model")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--trust_remote_code", action="store_true")
    args = parser.parse_args()
    if args.output.exists():
        raise UserError(f"--output={args.output}: exists; give another folder")
    merge(args.base_model, args.trained, args.output, args.trust_remote_code)


if __name__ == "__main__":
    main_exit("merge", main)
