"""Train the two bundled models from scratch: `python -m demo.build [qwen] [llama]` (from the root).

Writes demo/models/<family>/ (weights, tokenizer, chat template). Both together take under 30
minutes on 2 cores: each is trained in a process of its own, on one core, with fixed seeds.
"""

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from demo import chinese, english
from demo.documents import Document, Documents, TaskMix
from self_lengthen.family import load_family

MODELS = Path(__file__).parent / "models"
VOCABULARY = 2048
CONTEXT_TOKENS = 4096

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}"
    "{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

# (window in tokens, windows a step, steps, which documents): copying first, then the tasks, then
# far positions.
SCHEDULE = (
    (256, 8, 1100, TaskMix.ECHO),
    (1024, 4, 720, TaskMix.SHORT),
    (2048, 2, 520, TaskMix.MIXED),
    (4096, 1, 220, TaskMix.LONG),
)
WARMUP_STEPS = 50
HIDDEN_MATRIX_RATE = 6e-3  # Muon, scaled to the size of an AdamW update
OTHER_RATE = 5e-3
# Larger than the library's 0.02: copying is learned in a third of the steps.
INITIALIZER_RANGE = 0.05

# Words with their leading space, digits, punctuation and line ends, each apart from the others:
# so the end of a prompt is tokenised as it is in the middle of a text.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|[\r\n]+|\s+(?!\S)|\s+"


def build_tokenizer(family: str, texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's texts, with the special tokens of the chat format."""
    if family == "qwen":
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    else:
        specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"]
        specials += ["<|end_header_id|>", "<|eot_id|>"]
        names = {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|end_of_text|>",
        }
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if (
        family == "llama"
    ):  # as Llama 3: plain text gets a BOS, so that "one BOS" has to be taken care of
        bos = "<|begin_of_text|>"
        bpe.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos} $B",
                    special_tokens=[(bos, bpe.token_to_id(bos))],
                ),
            ]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        **names,
    )
    tokenizer.chat_template = CHATML if family == "qwen" else LLAMA3
    return tokenizer


def build_model(family: str, tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    """About 2M parameters in the architecture of the family."""
    shape = dict(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if family == "qwen":
        return Qwen2ForCausalLM(Qwen2Config(**shape))
    return LlamaForCausalLM(LlamaConfig(**shape))


def token_stream(
    draw: Callable[[], Document], tokenizer: PreTrainedTokenizerFast, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` tokens of documents and their labels, shape (count,); -100: not learned."""
    ids: list[int] = []
    labels: list[int] = []
    while len(ids) < count:
        documents = [draw() for _ in range(256)]
        for part, learned in ((0, False), (1, True)):
            encoded = tokenizer([d[part] for d in documents], add_special_tokens=False)["input_ids"]
            if not learned:
                prompts = encoded
        for prompt, text in zip(prompts, encoded, strict=True):
            ids += prompt + text
            labels += [-100] * len(prompt) + text
    return np.asarray(ids[:count], np.int64), np.asarray(labels[:count], np.int64)


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=HIDDEN_MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, constant, linear cool-down over the last half to a fiftieth."""
    cool = min(1.0, 2 * (1 - step / steps))
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(cool, 0.02)


def train(family_name: str) -> None:
    family = load_family(family_name)
    world = chinese.WORLD if family.language == "zh" else english.WORLD
    documents = Documents(world, family, random.Random(20241030))
    tokenizer = build_tokenizer(family_name, documents.tokenizer_texts())
    documents.render = lambda user: tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
    )
    documents.turn_end = tokenizer.eos_token
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model = build_model(family_name, tokenizer)
    steps = sum(phase[2] for phase in SCHEDULE)
    print(family_name, model.num_parameters(), "parameters,", steps, "steps", flush=True)
    opts = optimizers(model)
    base_rates = [[g["lr"] for g in o.param_groups] for o in opts]
    start, step = time.monotonic(), 0
    for window, batch, phase_steps, mix in SCHEDULE:
        ids, labels = token_stream(
            lambda m=mix: documents.draw(m), tokenizer, window * batch * phase_steps
        )
        shape = (phase_steps, batch, window)
        for rows, targets in zip(ids.reshape(shape), labels.reshape(shape), strict=True):
            for opt, rates in zip(opts, base_rates, strict=True):
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * rate_factor(step, steps)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(
                    input_ids=torch.from_numpy(rows), labels=torch.from_numpy(targets)
                ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            step += 1
            if step % 20 == 0:
                rate = step * window * batch / (time.monotonic() - start)
                print(
                    f"{family_name} step {step} loss {loss.item():.3f} {rate:.0f} tok/s", flush=True
                )
    out = MODELS / family_name
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{family_name} done in {(time.monotonic() - start) / 60:.1f} min -> {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", default=["qwen", "llama"])
    families = parser.parse_args().families
    if len(families) == 1:
        train(families[0])
        return
    children = [subprocess.Popen([sys.executable, "-m", "demo.build", f]) for f in families]
    sys.exit(max(child.wait() for child in children))


if __name__ == "__main__":
    main()
