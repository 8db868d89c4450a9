"""Start weights with which a small transformer copies from its context before any training.

An Extender must copy its draft. Learned from nothing, that takes a 2M-parameter model longer than
its whole training here; so the two layers of an induction circuit (Olsson et al., "In-context
Learning and Induction Heads", 2022) are set by hand, and training refines them:

- the embedding has one constant coordinate, and leaves 3 x CODE coordinates free;
- layer 0: head k attends to the token k + 1 places back, by the rotary phases of the constant, and
  writes a code of that token into the free coordinates;
- layer 1: two heads look for a place whose three predecessors are the current token and the two
  before it, compare the codes in the slowly rotating coordinates, and add the embedding of the
  token found there.

    set_copying_circuit(model, torch.Generator().manual_seed(3))
"""

import math

import torch

CODE = 32  # coordinates of a token's code
LOOK_BACK = 3  # tokens
CONSTANT = 4.0  # the constant coordinate, in standard deviations of the others
FAST_PAIRS = 8  # rotary pairs that tell neighbours apart
POSITION_LOGIT = 12.0  # of each fast pair, in favour of the wanted place
MATCH_LOGIT = 6.0  # scale of the comparison of codes
COPY_GAIN = 6.0  # what is found against the current token's own embedding


@torch.no_grad()
def set_copying_circuit(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Overwrites the heads of layer 0 and two of layer 1; needs 3 heads of 64, no shared keys."""
    config = model.config
    hidden, size, sigma = config.hidden_size, config.head_dim, config.initializer_range
    content = slice(1, hidden - LOOK_BACK * CODE)
    free = content.stop
    embedding = model.model.embed_tokens.weight
    embedding[:, free:] = 0
    embedding[:, 0] = CONSTANT * sigma
    model.model.norm.weight[0] = -1  # the same for all tokens: lowers log Z, see build.Z_LOSS
    norm = math.sqrt((content.stop - 1 + CONSTANT**2) / hidden)  # of an embedding, in sigma
    code = _orthonormal(CODE, content.stop - 1, generator)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for back in range(1, LOOK_BACK + 1):
        rows = slice((back - 1) * size, back * size)
        _clear(first, rows)
        _look_back(first, rows.start, size, back, CONSTANT / norm, config)
        values = slice(rows.start, rows.start + CODE)
        first.v_proj.weight[values, content] = code
        first.o_proj.weight[_slot(free, back), values] = torch.eye(CODE) * sigma * norm
    basis = _orthonormal(content.stop - 1, content.stop - 1, generator)
    slow = torch.cat([torch.arange(size // 4, size // 2), torch.arange(3 * size // 4, size)])
    for head in (0, 1):
        rows = slice(head * size, (head + 1) * size)
        _clear(second, rows)
        _compare(second, rows.start + slow, content, free, code, generator)
        half = basis[-size:] if head else basis[:size]
        second.v_proj.weight[rows, content] = half
        second.o_proj.weight[content, rows] = half.T * COPY_GAIN * sigma


def _slot(free: int, back: int) -> slice:
    """Where the code of the token `back` places before stands in the residual stream."""
    return slice(free + (back - 1) * CODE, free + back * CODE)


def _clear(attention: torch.nn.Module, rows: slice) -> None:
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[rows] = 0
    attention.o_proj.weight[:, rows] = 0


def _compare(
    attention: torch.nn.Module,
    rows: torch.Tensor,
    content: slice,
    free: int,
    code: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Queries say: this token and those before it; keys: those before that place."""
    for back in range(1, LOOK_BACK + 1):
        turn = _orthonormal(CODE, CODE, generator) * math.sqrt(MATCH_LOGIT)
        attention.k_proj.weight[rows, _slot(free, back)] = turn
        if back == 1:
            attention.q_proj.weight[rows, content] = turn @ code
        else:
            attention.q_proj.weight[rows, _slot(free, back - 1)] = turn


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
