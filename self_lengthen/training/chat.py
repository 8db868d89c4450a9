"""One chat template for serving and training: the tokenizer's own, checked token by token.

Serving renders conversations with the tokenizer's chat template. LLaMA-Factory has templates of its
own, which may add another system prompt. So the training rows carry the system prompt that the
tokenizer's template gives a conversation without one, and `verify_template` compares the token ids.
"""

import json
import os
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from self_lengthen.errors import UserError
from self_lengthen.family import ModelFamily
from self_lengthen.serving.prompt import render_messages

STUBS = Path(__file__).with_name("cpu_stubs")
PROBE = "What does a probe ask?"


@cache
def load_tokenizer(base_model: str, trust_remote_code: bool = False) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model, trust_remote_code=trust_remote_code)


def default_system_prompt(family: ModelFamily, tokenizer: Any) -> str:
    """What stands as system prompt in a conversation that was given none; "" when nothing does."""
    rendered = render_messages(tokenizer, [{"role": "user", "content": PROBE}], False)
    before_user = rendered.partition(PROBE)[0]
    _, opened, rest = before_user.partition(family.system_opening)
    text, closed, _ = rest.partition(family.system_closing)
    return text if opened and closed else ""


def serving_ids(
    tokenizer: Any, prompt: str, response: str, system: str | None = None
) -> tuple[list[int], list[int]]:
    """Token ids as the worker has them: the prompt that it is given, the reply that it gives."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    rendered = render_messages(tokenizer, messages, False)
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": response}], tokenize=False
    )
    if not whole.startswith(rendered):
        raise UserError("the tokenizer's chat template renders a finished conversation differently")
    # The engine goes on after the prompt's tokens: what follows is never merged with them.
    reply = whole[len(rendered) :]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (rendered, reply)]
    return ids[0], ids[1]


def training_ids(
    family: ModelFamily,
    base_model: str,
    prompt: str,
    response: str,
    system: str,
    trust_remote_code: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids as LLaMA-Factory trains on them."""
    with stand_ins():
        from llamafactory.data.template import get_template_and_fix_tokenizer
        from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    # A tokenizer of its own: the next line changes it.
    tokenizer = AutoTokenizer.from_pretrained(base_model, trust_remote_code=trust_remote_code)
    template = get_template_and_fix_tokenizer(
        tokenizer, DataArguments(template=family.training_template)
    )
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return template.encode_oneturn(tokenizer, messages, system)


def verify_template(
    family: ModelFamily,
    base_model: str,
    prompt: str,
    response: str,
    trust_remote_code: bool = False,
) -> None:
    """Raises UserError when training and serving would see different tokens of one conversation."""
    tokenizer = load_tokenizer(base_model, trust_remote_code)
    system = default_system_prompt(family, tokenizer)
    served = serving_ids(tokenizer, prompt, response)
    trained = training_ids(family, base_model, prompt, response, system, trust_remote_code)
    for part, expected, found in zip(("prompt", "response"), served, trained, strict=True):
        if list(expected) != list(found):
            raise UserError(
                f"{base_model}: LLaMA-Factory's template {family.training_template} gives other "
                f"tokens for the {part} than the tokenizer's chat template "
                f"({_first_difference(tokenizer, expected, found)}); set training_template in "
                f"{family.name}/config.py to the template of this model"
            )


def _first_difference(tokenizer: Any, expected: list[int], found: list[int]) -> str:
    at = len(os.path.commonprefix([list(expected), list(found)]))
    here, there = (json.dumps(tokenizer.decode(ids[at : at + 8])) for ids in (expected, found))
    return f"at token {at}: {there} instead of {here}"


@contextmanager
def stand_ins():
    """torchaudio's stand-in is importable, after any real one."""
    sys.path.append(str(STUBS))
    try:
        yield
    finally:
        sys.path.remove(str(STUBS))
