"""Start weights with which a small transformer copies from its context before any training.

An Extender must copy its draft. Learned from nothing, that takes a 2M-parameter model longer than
its whole training here; so the two layers of an induction circuit (Olsson et al., "In-context
Learning and Induction Heads", 2022) are set by hand, and training refines them:

- the embedding has one constant coordinate, and leaves 2 x CODE coordinates free;
- layer 0: head k attends to the token k + 1 places back, by the rotary phases of the constant, and
  writes a code of that token into the free coordinates;
- layer 1: two heads look for a place whose two predecessors are the current token and the one
  before it, compare the codes in the slowly rotating coordinates, and add the embedding of the
  token found there.

    set_copying_circuit(model, torch.Generator().manual_seed(3))
"""

import math

import torch

CODE = 32  # coordinates of a token's code
CONSTANT = 4.0  # the constant coordinate, in standard deviations of the others
FAST_PAIRS = 8  # rotary pairs that tell neighbours apart
POSITION_LOGIT = 12.0  # of each fast pair, in favour of the wanted place
MATCH_LOGIT = 6.0  # scale of the comparison of codes
COPY_GAIN = 6.0  # what is found against the current token's own embedding


@torch.no_grad()
def set_copying_circuit(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Overwrites heads 0 and 1 of layers 0 and 1; needs heads of 64 with keys of their own."""
    config = model.config
    hidden, size, sigma = config.hidden_size, config.head_dim, config.initializer_range
    content = slice(1, hidden - 2 * CODE)
    free = content.stop
    embedding = model.model.embed_tokens.weight
    embedding[:, free:] = 0
    embedding[:, 0] = CONSTANT * sigma
    model.model.norm.weight[0] = 0  # the same for all tokens: no business of the logits
    norm = math.sqrt((content.stop - 1 + CONSTANT**2) / hidden)  # of an embedding, in sigma
    code = _orthonormal(CODE, content.stop - 1, generator)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for attention in (first, second):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[: 2 * size] = 0
        attention.o_proj.weight[:, : 2 * size] = 0
    for head in (0, 1):
        _look_back(first, head * size, size, head + 1, CONSTANT / norm, config)
        first.v_proj.weight[head * size : head * size + CODE, content] = code
        slot = slice(free + head * CODE, free + (head + 1) * CODE)
        first.o_proj.weight[slot, head * size : head * size + CODE] = torch.eye(CODE) * sigma * norm
    basis = _orthonormal(content.stop - 1, content.stop - 1, generator)
    slow = torch.cat([torch.arange(size // 4, size // 2), torch.arange(3 * size // 4, size)])
    for head in (0, 1):
        rows = head * size + slow
        here, before = (
            _orthonormal(CODE, CODE, generator) * math.sqrt(MATCH_LOGIT) for _ in range(2)
        )
        second.q_proj.weight[rows, content] = here @ code
        second.q_proj.weight[rows, free : free + CODE] = before
        second.k_proj.weight[rows, free : free + CODE] = here
        second.k_proj.weight[rows, free + CODE :] = before
        values = slice(head * size, (head + 1) * size)
        half = basis[-size:] if head else basis[:size]
        second.v_proj.weight[values, content] = half
        second.o_proj.weight[content, values] = half.T * COPY_GAIN * sigma


def _look_back(
    attention: torch.nn.Module, start: int, size: int, back: int, constant: float, config
) -> None:
    """Queries and keys of one head that favour the place `back` tokens before."""
    theta = config.rope_parameters["rope_theta"]
    amplitude = math.sqrt(POSITION_LOGIT * math.sqrt(size)) / constant
    for pair in range(FAST_PAIRS):
        angle = back * theta ** (-2 * pair / size)
        attention.k_proj.weight[start + pair, 0] = amplitude
        attention.q_proj.weight[start + pair, 0] = amplitude * math.cos(angle)
        attention.q_proj.weight[start + pair + size // 2, 0] = -amplitude * math.sin(angle)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0].T
