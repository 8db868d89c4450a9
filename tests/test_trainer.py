"""Claims about what we add to LLaMA-Factory's training: its launcher, and no mask of padding."""

import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from self_lengthen.training.padding import WithoutPaddingMask
from self_lengthen.training.trainer import TRAINER, torchrun

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
NO_LOSS = -100


@pytest.fixture(params=[(Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM)])
def model(request):
    torch.manual_seed(1)
    config, model = request.param
    return model(config(**SIZES, **HEADS)).double()


def batch(lengths: list[int], padded_to: int) -> dict[str, torch.Tensor]:
    """Random texts, padded at the right as LLaMA-Factory does it."""
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (len(lengths), padded_to), generator=drawn)
    mask = torch.arange(padded_to) < torch.tensor(lengths)[:, None]
    ids = torch.where(mask, ids, 0)
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": torch.where(mask, ids, NO_LOSS),
    }


def learnt(model, texts: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The loss and all gradients."""
    model.zero_grad()
    loss = model(**texts).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


class TestWithoutPaddingMask:
    @pytest.mark.parametrize("lengths", [[13], [16], [2], [13, 5, 16]])
    def test_the_same_is_learnt(self, model, lengths):
        texts = batch(lengths, 16)
        masked = learnt(model, texts)
        WithoutPaddingMask().on_train_begin(None, None, None, model=model)
        for expected, found in zip(masked, learnt(model, texts), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    def test_the_attention_sees_no_mask(self, model):
        seen = []
        WithoutPaddingMask().on_train_begin(None, None, None, model=model)
        for layer in model.model.layers:
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
            )
        model(**batch([13, 5], 16))
        assert seen == [None, None]

    def test_padding_at_the_left_is_refused(self, model):
        WithoutPaddingMask().on_train_begin(None, None, None, model=model)
        texts = {name: value.flip(1) for name, value in batch([13, 16], 16).items()}
        with pytest.raises(ValueError, match="padded at the left"):
            model(**texts)


class TestTorchrun:
    NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}

    @pytest.mark.parametrize("environ", [{}, NODES, {"FORCE_TORCHRUN": "1", "LOCAL_RANK": "0"}])
    def test_one_process_trains_itself(self, environ):
        assert torchrun(environ, "f.yaml") == []

    def test_llama_factorys_variables_are_torchruns_options(self):
        environ = {**self.NODES, "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "8"}
        python, *module = torchrun(environ, "f.yaml")
        assert python == sys.executable
        options = ["--nnodes=2", "--node_rank=1", "--nproc_per_node=8"]
        options += ["--master_addr=10.0.0.1", "--master_port=29400"]
        assert module == ["-m", "torch.distributed.run", *options, "-m", TRAINER, "f.yaml"]
