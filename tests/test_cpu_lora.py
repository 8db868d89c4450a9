"""LoRA on the CPU: the same sums as vLLM's own, and nothing for tokens without an adapter."""

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from self_lengthen.serving.cpu_lora import GroupedLora, rows_by_slot

pytestmark = pytest.mark.real  # vLLM for the CPU, and seconds to import it

RANK, WIDTH, OUTPUTS = 8, 24, (32, 16, 16)
ADAPTERS = [11, 12]  # the ids in slots 0 and 1; 0 is the id of no adapter


def applied(wrapper: type, requests: list[int], output: torch.Tensor) -> torch.Tensor:
    """What is added to `output` for requests of one token each, by the ids of their adapters."""
    drawn = torch.Generator().manual_seed(5)
    x = torch.randn(len(requests), WIDTH, generator=drawn)
    a = [torch.randn(2, 1, RANK, WIDTH, generator=drawn) for _ in OUTPUTS]
    b = [torch.randn(2, 1, size, RANK, generator=drawn) for size in OUTPUTS]
    punica = wrapper(64, 64, "cpu")
    mapping = LoRAMapping(tuple(requests), tuple(requests), is_prefill=True)
    punica.update_metadata(mapping, ADAPTERS, len(ADAPTERS), 100)
    output = output.clone()
    punica.add_lora_linear(output, x, tuple(a), tuple(b), 1.0, OUTPUTS)
    return output


@pytest.mark.parametrize("requests", [[11] * 5, [12, 11, 11, 12], [12]])
def test_the_sums_are_those_of_vllm(requests: list[int]) -> None:
    base = torch.randn(len(requests), sum(OUTPUTS), generator=torch.Generator().manual_seed(6))
    ours = applied(GroupedLora, requests, base)
    torch.testing.assert_close(ours, applied(PunicaWrapperCPU, requests, base))
    assert (ours - base).abs().min() > 0


def test_a_request_for_the_base_model_gets_none_of_its_neighbours_adapter() -> None:
    base = torch.randn(4, sum(OUTPUTS), generator=torch.Generator().manual_seed(6))
    ours = applied(GroupedLora, [0, 12, 0, 11], base)
    assert torch.equal(ours[[0, 2]], base[[0, 2]])
    assert not torch.equal(ours[[1, 3]], base[[1, 3]])
    assert torch.equal(applied(GroupedLora, [0] * 4, base), base)


@pytest.mark.parametrize("width", [90, 100, 110])  # the weights are made for 100 tokens
def test_logits_and_weights_may_be_padded_differently(width: int) -> None:
    drawn = torch.Generator().manual_seed(5)
    a = torch.randn(1, 1, RANK, WIDTH, generator=drawn)
    b = torch.randn(1, 1, 100, RANK, generator=drawn)
    x, logits = torch.randn(3, WIDTH, generator=drawn), torch.zeros(3, width)
    punica = GroupedLora(64, 64, "cpu")
    punica.update_metadata(LoRAMapping((1, 0, 1), (1, 0, 1), is_prefill=True), [1], 1, 100)
    punica.add_lora_logits(logits, x, a, b, 0.5)
    known = min(width, 100)
    expected = 0.5 * x @ a[0, 0].T @ b[0, 0, :known].T
    torch.testing.assert_close(logits[[0, 2], :known], expected[[0, 2]])
    assert not logits[1].any() and not logits[:, known:].any()


def test_rows_by_slot() -> None:
    assert rows_by_slot(torch.tensor([1, 1])) == [(1, slice(None))]
    assert rows_by_slot(torch.tensor([-1, -1])) == []
    (one, rows), (two, others) = rows_by_slot(torch.tensor([2, -1, 0, 2]))
    assert (one, rows.tolist(), two, others.tolist()) == (0, [2], 2, [0, 3])
