"""The one way to the network: an OpenAI-compatible server, asked by chat.

    async with Endpoint(base_url) as endpoint:  # or "URL,URL": the API servers of several nodes
        reply = await endpoint.chat("base", "Write ...", sampling, seed=1)
        reply = await endpoint.chat("base", "Write ...", sampling, seed=1, opened_with="Once ")

Transport errors (no connection, time-out, 429, 5xx) are retried with jittered back-off until a
deadline, at the next of several servers; a refusal (other 4xx) never is. The openai client's own
silent retries are off: a retry behind our back would leave a zombie generation on the server.
"""

import itertools
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
NO_KEY = "none"  # the openai client insists on one; on loopback nobody looks at it
FASTCHAT_CONTEXT_OVERFLOW = 40303  # fastchat.constants.ErrorCode

TRANSIENT = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)

# Where a reply ends besides the end token; paper's release.
STOP_STRINGS = ("<|eot_id|>", "<|im_end|>", "\n\n---", "\n---", "---", "\n\n\n")


class EndpointError(Exception):
    """The server could not be reached or refused the request, after all retries."""


class ContextOverflowError(EndpointError):
    """The prompt leaves no room in the model's context."""


@dataclass(frozen=True)
class Sampling:
    """Sampling of every call; the defaults are the paper's release's."""

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    repetition_penalty: float = 1.1
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
    api_key: str = NO_KEY
    retry_deadline_s: float = RETRY_DEADLINE_S

    def __post_init__(self) -> None:
        self._teller = _Teller()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        http_client = httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False)
        self._clients = [
            openai.AsyncOpenAI(
                base_url=url, api_key=self.api_key, max_retries=0, http_client=http_client
            )
            for url in self.base_url.split(",")
        ]
        self._turns = itertools.cycle(self._clients)

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._clients[0].close()  # they share their connections

    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply:
        """The assistant's turn to one user message; with `opened_with`, its continuation.

        Raises EndpointError after the last retry, ContextOverflowError for too long a prompt.
        """
        messages = [{"role": "user", "content": user}]
        if opened_with:
            messages.append({"role": "assistant", "content": opened_with})
        request = {
            "model": model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
            "seed": seed,
            "extra_body": {
                "top_k": sampling.top_k,
                "repetition_penalty": sampling.repetition_penalty,
                # vLLM's names for "the last message is the opening of the reply"
                "continue_final_message": bool(opened_with),
                "add_generation_prompt": not opened_with,
            },
        }
        return await self._ask(request)

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
                    client = next(self._turns)
                    completion = await client.chat.completions.create(**request)
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
    if body.get("code") in (FASTCHAT_CONTEXT_OVERFLOW, str(FASTCHAT_CONTEXT_OVERFLOW)):
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
