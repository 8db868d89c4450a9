"""Sampling fields that a request may carry, from the API server to the engine. No imports: cheap.

All of vLLM's SamplingParams that make sense in a request for text. max_tokens is clamped apart.
"""

SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "logit_bias",
    "bad_words",
)
STOP_REPEAT = "stop_repeat"  # ours, no field of vLLM: n-gram rules, see serving/reply.py
