"""Facts about a base model, from its config.json: a folder, or the name of a model on the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self_lengthen.errors import UserError
from self_lengthen.files import read_json

DEFAULT_CONTEXT_TOKENS = 32768  # prompt with a draft of 16k tokens, and a reply as long
# Weights, tokenizer with its chat template, and code, which runs only with --trust_remote_code.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken", "*.jinja", "*.py"]


@dataclass(frozen=True)
class BaseModel:
    path: str  # a folder, or the hub's name while nothing was downloaded
    model_type: str
    context_tokens: int
    attention_heads: int  # 0 when unknown, as all below
    weight_bytes: int
    layers: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0


def read_base_model(given: str) -> BaseModel:
    """Raises UserError when `given` is no folder with a config.json and no model of the hub."""
    folder = Path(given).expanduser()
    if folder.is_dir():
        if " " in str(folder.resolve()):
            raise UserError(f"--base_model={given}: LLaMA-Factory takes no path with a space in it")
        return _facts(str(folder.resolve()), _config(folder / "config.json"), _weights(folder))
    if given.startswith(("/", ".", "~")) or given.count("/") != 1:
        raise UserError(f"--base_model={given}: no such folder")
    config = _config(_hub_config(given))
    return _facts(given, config, dense_weight_bytes(config))


def served_context(wanted: int, model: BaseModel) -> int:
    """Tokens of prompt and reply; 0 wants the default. Raises UserError for more than it knows."""
    if wanted > model.context_tokens:
        raise UserError(
            f"--max_model_len={wanted}: {model.path} knows {model.context_tokens} tokens at most"
        )
    return wanted or min(model.context_tokens, DEFAULT_CONTEXT_TOKENS)


def local_base_model(given: str) -> str:
    """The folder of the model's files; a model of the hub is downloaded once.

    Raises UserError when the hub does not give it.
    """
    if Path(given).expanduser().is_dir():
        return str(Path(given).expanduser().resolve())
    import huggingface_hub

    with _named(given):
        return huggingface_hub.snapshot_download(given, allow_patterns=HUB_FILES)


def _hub_config(name: str) -> Path:
    import huggingface_hub

    with _named(name):
        return Path(huggingface_hub.hf_hub_download(name, "config.json"))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What goes wrong with the hub, as one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"--base_model={name}: neither a folder nor a model that the hub gives ({reason})"
        ) from error


def _config(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise UserError(f"--base_model={file.parent}: has no config.json; is it a model's folder?")
    try:
        config = read_json(file)
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{file}: has no model_type; is it a language model's folder?")
    return config


def _facts(path: str, config: dict[str, Any], weight_bytes: int) -> BaseModel:
    return BaseModel(
        path=path,
        model_type=config["model_type"],
        context_tokens=config.get("max_position_embeddings", DEFAULT_CONTEXT_TOKENS),
        attention_heads=config.get("num_attention_heads", 0),
        weight_bytes=weight_bytes,
        layers=config.get("num_hidden_layers", 0),
        hidden_size=config.get("hidden_size", 0),
        intermediate_size=config.get("intermediate_size", 0),
    )


def dense_weight_bytes(config: dict[str, Any]) -> int:
    """Of the matrices of a Qwen2- or Llama-like model in 16 bits; 0 for a mixture of experts."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if any("expert" in name for name in config) or not {*sizes, "vocab_size"} <= config.keys():
        return 0
    hidden, intermediate, layers, heads = (config[name] for name in sizes)
    head = config.get("head_dim") or hidden // heads
    key_heads = config.get("num_key_value_heads") or heads
    layer = 2 * hidden * head * (heads + key_heads) + 3 * hidden * intermediate
    embeddings = (1 if config.get("tie_word_embeddings") else 2) * config["vocab_size"] * hidden
    return 2 * (layers * layer + embeddings)


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
