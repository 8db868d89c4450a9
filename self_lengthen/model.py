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
    attention_heads: int  # 0 when unknown
    weight_bytes: int  # 0 when unknown


def read_base_model(given: str) -> BaseModel:
    """Raises UserError when `given` is no folder with a config.json and no model of the hub."""
    folder = Path(given).expanduser()
    if folder.is_dir():
        if " " in str(folder.resolve()):
            raise UserError(f"--base_model={given}: LLaMA-Factory takes no path with a space in it")
        return _facts(str(folder.resolve()), _config(folder / "config.json"), _weights(folder))
    if given.startswith(("/", ".", "~")) or given.count("/") != 1:
        raise UserError(f"--base_model={given}: no such folder")
    return _facts(given, _config(_hub_config(given)), 0)


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
    )


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
