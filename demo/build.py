"""Train the two bundled models from scratch: `python -m demo.build [qwen] [llama]` (from the root).

Writes demo/models/<family>/ (weights, tokenizer, chat template). Both together take under 30
minutes on 2 cores: each is trained in a process of its own, on one core, with fixed seeds.
"""

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from demo.copying import set_copying_circuit
from demo.documents import WORLDS, Document, Documents, TaskMix
from demo.muon import Muon
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

# (window in tokens, windows a step, steps, which documents): copying, then the tasks, then far
# positions.
Phase = tuple[int, int, int, TaskMix]
FIRST_PHASES: tuple[Phase, ...] = (
    (256, 16, 90, TaskMix.COPY),
    (1024, 4, 450, TaskMix.TASKS),
    (2048, 2, 110, TaskMix.FAR),
    (4096, 1, 20, TaskMix.FAR),
)
# Short, so that habits of length can be changed and learned anew (--last_only) in minutes.
LAST_PHASE: tuple[Phase, ...] = ((1024, 4, 20, TaskMix.LAST), (2048, 2, 160, TaskMix.LAST))
LAST_RATE = 0.4  # of the rates below
WARMUP_STEPS = 30
HIDDEN_MATRIX_RATE = 4e-3  # Muon, scaled to the size of an AdamW update
OTHER_RATE = 3e-3
INITIALIZER_RANGE = 0.05
ROPE_THETA = 1e6  # as Qwen2: the copying circuit compares tokens in coordinates that hardly rotate
CANDIDATES = 48  # documents in reserve when windows are filled
PROMPT_WEIGHT = 0.25  # of a prompt's token in the loss, against one of the text that follows it
SHORT_TEXT_TOKENS = 16  # a shorter text weighs as much as one of this length: a judge's one word
# Keeps log Z near 0, as in PaLM: then logits are log probabilities, and a repetition penalty, which
# multiplies logits, takes little from words that occur often.
Z_LOSS = 3e-3
# glibc's malloc gives large blocks back to the kernel and gets them anew, zeroed: a seventh slower.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}

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
    """About 2M parameters in the architecture of the family, able to copy from the start."""
    shape = dict(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if family == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    for layer in model.model.layers:  # what is random at first shall not drown what is set
        layer.mlp.down_proj.weight.data *= 0.1
        layer.self_attn.o_proj.weight.data *= 0.1
    set_copying_circuit(model, torch.Generator().manual_seed(3))
    return model


def windows(
    draw: Callable[[], Document], tokenizer: PreTrainedTokenizerFast, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and their weights in the loss, shape (size,) each, of whole documents.

    0 and a weight of 0 where no other document fitted in.
    """
    waiting: list[tuple[list[int], list[float]]] = []
    while True:
        ids, weights = [], []
        while True:
            if len(waiting) < CANDIDATES:
                encoded = encode([draw() for _ in range(CANDIDATES)], tokenizer)
                waiting += [document for document in encoded if len(document[0]) <= size]
            room = size - len(ids)
            fitting = (n for n, document in enumerate(waiting) if len(document[0]) <= room)
            number = next(fitting, None)
            if number is None:
                break
            more_ids, more_weights = waiting.pop(number)
            ids += more_ids
            weights += more_weights
        pad = size - len(ids)
        yield np.asarray(ids + [0] * pad), np.asarray(weights + [0.0] * pad, np.float32)


def encode(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], list[float]]]:
    prompts, texts = (
        tokenizer([document[part] for document in documents], add_special_tokens=False)["input_ids"]
        for part in (0, 1)
    )
    for prompt, text in zip(prompts, texts, strict=True):
        weight = max(1.0, SHORT_TEXT_TOKENS / len(text))
        yield prompt + text, [PROMPT_WEIGHT] * len(prompt) + [weight] * len(text)


def loss_of(model: torch.nn.Module, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of cross-entropy and z-loss over the tokens but the first of each window."""
    logits, wanted = model(input_ids=ids).logits[:, :-1], ids[:, 1:, None]
    log_z = logits.logsumexp(-1)
    losses = log_z - logits.gather(-1, wanted)[..., 0] + Z_LOSS * log_z**2
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=HIDDEN_MATRIX_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, constant, linear cool-down over the last half to a fiftieth."""
    cool = min(1.0, 2 * (1 - step / steps))
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(cool, 0.02)


def set_rates(
    opts: list[torch.optim.Optimizer], base_rates: list[list[float]], factor: float
) -> None:
    for opt, rates in zip(opts, base_rates, strict=True):
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def train(family_name: str, last_only: bool) -> None:
    """On one core. The last phase goes on from the saved weights of those before."""
    family = load_family(family_name)
    documents = Documents(WORLDS[family.language], family, random.Random(20241030))
    folder, started = MODELS / family_name, time.monotonic()
    if last_only:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        tokenizer = build_tokenizer(family_name, documents.tokenizer_texts())
    documents.render = lambda user: tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
    )
    documents.turn_end = tokenizer.eos_token
    torch.manual_seed(7)
    torch.set_num_threads(1)
    if not last_only:
        model = build_model(family_name, tokenizer)
        print(family_name, model.num_parameters(), "parameters", flush=True)
        learn(family_name, model, tokenizer, documents, FIRST_PHASES, 1.0)
        save(model, folder)
        tokenizer.save_pretrained(folder)
    documents.rng = random.Random(20241031)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    learn(family_name, model, tokenizer, documents, LAST_PHASE, LAST_RATE)
    save(model, folder)
    print(f"{family_name} done in {(time.monotonic() - started) / 60:.1f} min", flush=True)


def learn(
    name: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    documents: Documents,
    phases: Sequence[Phase],
    peak: float,
) -> None:
    """One warm-up and cool-down over all `phases`; `peak` is a factor of the learning rates."""
    opts = optimizers(model)
    base_rates = [[g["lr"] for g in o.param_groups] for o in opts]
    steps = sum(phase[2] for phase in phases)
    started, step, seen = time.monotonic(), 0, 0
    for window, batch, phase_steps, mix in phases:
        source = windows(lambda m=mix: documents.draw(m), tokenizer, window)
        for _ in range(phase_steps):
            set_rates(opts, base_rates, peak * rate_factor(step, steps))
            rows = zip(*(next(source) for _ in range(batch)), strict=True)
            ids, weights = (torch.from_numpy(np.stack(row)) for row in rows)
            loss = loss_of(model, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            step, seen = step + 1, seen + ids.numel()
            if step % 20 == 0:
                rate = seen / (time.monotonic() - started)
                line = f"{name} step {step} of {steps} loss {loss.item():.3f} {rate:.0f} tok/s"
                print(line, flush=True)


def save(model: torch.nn.Module, folder: Path) -> None:
    """Stored as bfloat16, for size; loaded as float32, in which every CPU computes fast."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", default=["qwen", "llama"])
    parser.add_argument(
        "--last_only", action="store_true", help="go on from the models as they were before it"
    )
    args = parser.parse_args()
    families = args.families
    if len(families) == 1:
        train(families[0], args.last_only)
        return
    build = [sys.executable, "-m", "demo.build", *["--last_only"] * args.last_only]
    children = [subprocess.Popen([*build, f], env={**os.environ, **MALLOC}) for f in families]
    sys.exit(max(child.wait() for child in children))


if __name__ == "__main__":
    main()
