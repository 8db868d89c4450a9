"""The one way to the network: an OpenAI-compatible server, asked by chat.

    async with Endpoint(base_url) as endpoint:
        reply = await endpoint.chat("base", "Write ...", sampling, seed=1)
        reply = await endpoint.chat("base", "Write ...", sampling, seed=1, opened_with="Once ")

Transport errors (no connection, time-out, 429, 5xx) are retried with jittered back-off until a
deadline; a refusal (other 4xx) never is. The openai client's own silent retries are off: a retry
behind our back would leave a zombie generation running on the server.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 3 * 3600.0  # a 16k-token reply in a full batch takes many minutes
CONNECT_TIMEOUT_S = 10.0
RETRY_DEADLINE_S = 300.0
TELL_EVERY_S = 30.0
# How servers say that a prompt is too long: FastChat (fastchat.constants.ErrorCode), OpenAI; vLLM's
# own server says it in words alone.
CONTEXT_OVERFLOW_CODES = ("40303", "context_length_exceeded")
CONTEXT_OVERFLOW_WORDS = "maximum context length"

TRANSIENT = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)

# Where a reply ends besides the end token; paper's release.
STOP_STRINGS = ("<|eot_id|>", "<|im_end|>", "\n\n---", "\n---", "---", "\n\n\n")


class EndpointError(Exception):
    """The server could not be reached or refused the request, after all retries."""


class ContextOverflowError(EndpointError):
    """The prompt leaves no room in the model's context."""


@dataclass(frozen=True)
class Sampling:
    """Sampling of every call; the defaults are the paper's release's.

    None is not sent and leaves the choice to the server. Foreign servers refuse fields that they do
    not know: top_k and repetition_penalty are vLLM's.
    """

    temperature: float | None = 0.7
    top_p: float | None = 0.8
    top_k: int | None = 20
    repetition_penalty: float | None = 1.1
    max_tokens: int = 16384
    stop: tuple[str, ...] = STOP_STRINGS


@dataclass(frozen=True)
class Reply:
    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Endpoint:
    base_url: str
    api_key: str = "none"
    retry_deadline_s: float = RETRY_DEADLINE_S

    def __post_init__(self) -> None:
        self._teller = _Teller()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.api_key,
            max_retries=0,
            http_client=httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False),
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply:
        """The assistant's turn to one user message; with `opened_with`, its continuation.

        Raises EndpointError after the last retry, ContextOverflowError for too long a prompt.
        """
        messages = [{"role": "user", "content": user}]
        vllm_fields: dict[str, Any] = {
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
        }
        if opened_with:
            messages.append({"role": "assistant", "content": opened_with})
            # vLLM's names for "the last message is the opening of the reply"
            vllm_fields |= {"continue_final_message": True, "add_generation_prompt": False}
        request = {
            "model": model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "seed": seed,
            "extra_body": _without_none(vllm_fields),
        }
        return await self._ask(_without_none(request))

    async def _ask(self, request: dict[str, Any]) -> Reply:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TRANSIENT),
            stop=_after_first_failure(self.retry_deadline_s),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            before_sleep=self._teller,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    completion = await self._client.chat.completions.create(**request)
        except openai.APIStatusError as error:
            raise _refusal(error) from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            raise EndpointError(f"{self.base_url}: {error} ({error.__cause__})") from error
        if not getattr(completion, "choices", None):
            raise EndpointError(f"{self.base_url}: answers with no completion: {completion!r:.200}")
        choice, usage = completion.choices[0], completion.usage
        return Reply(
            text=choice.message.content or "",
            finish_reason=choice.finish_reason,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _after_first_failure(seconds: float) -> Callable[[RetryCallState], bool]:
    """Stop so long after the first failure. What went before does not count: a generation of many
    minutes that ends with its worker has the whole time to find another one."""
    first_failure_s: list[float] = []

    def stop(state: RetryCallState) -> bool:
        first_failure_s.append(state.outcome_timestamp)
        return state.outcome_timestamp - first_failure_s[0] >= seconds

    return stop


def _refusal(error: openai.APIStatusError) -> EndpointError:
    body = error.body if isinstance(error.body, dict) else {}
    line = (
        f"HTTP {error.status_code} from {error.request.url}: {body.get('message') or error.message}"
    )
    if str(body.get("code")) in CONTEXT_OVERFLOW_CODES or CONTEXT_OVERFLOW_WORDS in line:
        return ContextOverflowError(line)
    return EndpointError(line)


class _Teller:
    """Says that requests fail, once in a while for all of them together."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, state: RetryCallState) -> None:
        if state.attempt_number >= 3 and time.monotonic() >= self._next:
            self._next = time.monotonic() + TELL_EVERY_S
            error = state.outcome.exception() if state.outcome else None
            log.warning("requests fail and are retried: %s", error)
