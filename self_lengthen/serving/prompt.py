"""Rendering of a conversation: the tokenizer's own chat template, for serving and for training."""

from typing import Any, Protocol

Message = dict[str, Any]


class Tokenizer(Protocol):
    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any: ...


def render_messages(tokenizer: Tokenizer, messages: list[Message], continue_final: bool) -> str:
    """The prompt for the assistant's turn; `continue_final`: the last message is its opening.

    The opening is appended to the rendered turn as it is: a template may trim what it renders.
    """
    opening = ""
    if continue_final:
        *messages, last = messages
        opening = last["content"]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return rendered + opening
