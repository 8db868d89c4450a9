"""Training without a mask of padding, which lets the attention take its fast kernels.

LLaMA-Factory rounds the length of a batch up to a multiple of 8, so that seven texts of eight have
some padding. For that, transformers gives the attention a mask of length x length, which rules out
the fast kernels. But padding stands right of a text, where a causal model never looks, and has no
loss: without a mask the weights learn the same (docs/performance.md has what that saves).
"""

from typing import Any

from transformers import TrainerCallback


class WithoutPaddingMask(TrainerCallback):
    """Takes the mask of padding away from whatever the model is given in training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        given["model"].register_forward_pre_hook(without_padding_mask, with_kwargs=True)


def without_padding_mask(
    _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward hook. Raises ValueError where a text does not begin at the left."""
    mask = kwargs.get("attention_mask")
    if mask is not None and not mask[:, 0].all():
        raise ValueError("a batch is padded at the left: without a mask, padding would be read")
    return args, {**kwargs, "attention_mask": None}
