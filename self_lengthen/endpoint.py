"""The one way to the network: an OpenAI-compatible server, asked by chat.

    async with Endpoint(base_url) as endpoint:  # or "URL,URL": the API servers of several nodes
        reply = await endpoint.chat("base", "Write ...", sampling, seed=1)
        reply = await endpoint.chat("base", "Write ...", sampling, seed=1, opened_with="Once ")

Transport errors (no connection, time-out, 429, 5xx) are retried with jittered back-off until a
deadline, at the next of several servers; a refusal (other 4xx) never is. Speaks HTTP itself: the
openai client costs ten times the CPU a request, and its silent retries leave zombie generations.
"""

import itertools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import aiohttp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from self_lengthen.family import NgramRule
from self_lengthen.limits import allow_many_connections
from self_lengthen.pace import Load

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 3 * 3600.0  # a 16k-token reply in a full batch takes many minutes
CONNECT_TIMEOUT_S = 10.0
LOAD_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
KEEP_IDLE_S = 4.0  # a connection; the server closes it after 5
RETRY_DEADLINE_S = 300.0
TELL_EVERY_S = 30.0
NO_KEY = "none"  # on loopback nobody looks at it
# How servers say that a prompt is too long: FastChat (fastchat.constants.ErrorCode), OpenAI; vLLM's
# own server says it in words alone.
CONTEXT_OVERFLOW_CODES = ("40303", "context_length_exceeded")
CONTEXT_OVERFLOW_WORDS = "maximum context length"
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500

# Where a reply ends besides the end token; paper's release.
STOP_STRINGS = ("<|eot_id|>", "<|im_end|>", "\n\n---", "\n---", "---", "\n\n\n")


class EndpointError(Exception):
    """The server could not be reached or refused the request, after all retries."""


class ContextOverflowError(EndpointError):
    """The prompt leaves no room in the model's context."""


class PassingError(EndpointError):
    """Another try may succeed."""


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
    stop_repeat: tuple[NgramRule, ...] = ()  # stop where the text breaks one: REPETITION


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
        self._urls = itertools.cycle(self.base_url.split(","))

    async def __aenter__(self) -> "Endpoint":
        allow_many_connections()
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_IDLE_S),
            headers={"Authorization": f"Bearer {self.api_key}"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply:
        """The assistant's turn to one user message; with `opened_with`, its continuation.

        Raises EndpointError after the last retry, ContextOverflowError for too long a prompt.
        """
        messages = [{"role": "user", "content": user}]
        request = {
            "model": model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "seed": seed,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "stop_repeat": [asdict(rule) for rule in sampling.stop_repeat] or None,
        }
        if opened_with:
            messages.append({"role": "assistant", "content": opened_with})
            # vLLM's names for "the last message is the opening of the reply"
            request |= {"continue_final_message": True, "add_generation_prompt": False}
        return await self._ask({name: v for name, v in request.items() if v is not None})

    async def load(self) -> Load | None:
        """What the engines do at this moment; None from a server that does not tell."""
        url = f"{next(self._urls)}/load"
        try:
            async with self._session.get(url, timeout=LOAD_TIMEOUT) as response:
                return Load(**await response.json())
        except (aiohttp.ClientError, TimeoutError, ValueError, TypeError):
            return None

    async def _ask(self, request: dict[str, Any]) -> Reply:
        try:
            return await self._try(request)
        except PassingError as error:
            return await self._retry(request, error)

    async def _retry(self, request: dict[str, Any], first: PassingError) -> Reply:
        """Through tenacity goes only what has failed once: it takes as long as half a request."""
        failures = [first]

        async def try_again() -> Reply:
            if failures:
                raise failures.pop()
            return await self._try(request)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            stop=_after_first_failure(self.retry_deadline_s),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            before_sleep=self._teller,
            reraise=True,
        )
        return await retrying(try_again)

    async def _try(self, request: dict[str, Any]) -> Reply:
        url = f"{next(self._urls)}/chat/completions"
        try:
            async with self._session.post(url, json=request) as response:
                body = await response.read()
        except aiohttp.InvalidURL as error:
            raise EndpointError(f"{url}: is no URL of a server") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PassingError(f"{url}: {type(error).__name__} {error}") from error
        if response.status >= 400:
            raise _failure(url, response.status, body)
        return _reply(url, body)


def _reply(url: str, body: bytes) -> Reply:
    try:
        completion = json.loads(body)
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        return Reply(
            text=choice["message"]["content"] or "",
            finish_reason=choice["finish_reason"],
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EndpointError(f"{url}: answers with no completion: {body[:200]!r}") from error


def _after_first_failure(seconds: float) -> Callable[[RetryCallState], bool]:
    """Stop so long after the first failure. What went before does not count: a generation of many
    minutes that ends with its worker has the whole time to find another one."""
    first_failure_s: list[float] = []

    def stop(state: RetryCallState) -> bool:
        first_failure_s.append(state.outcome_timestamp)
        return state.outcome_timestamp - first_failure_s[0] >= seconds

    return stop


def _failure(url: str, status: int, body: bytes) -> EndpointError:
    try:
        told = json.loads(body)
        told = told.get("error", told)  # OpenAI's body; FastChat's has no such level
        message, code = told.get("message"), told.get("code")
    except (ValueError, AttributeError):
        message = code = None
    line = f"HTTP {status} from {url}: {message or body[:200].decode(errors='replace')}"
    if status == TOO_MANY_REQUESTS or status >= SERVER_ERROR:
        return PassingError(line)
    overflow = str(code) in CONTEXT_OVERFLOW_CODES or CONTEXT_OVERFLOW_WORDS in line
    return ContextOverflowError(line) if overflow else EndpointError(line)


class _Teller:
    """Says that requests fail, once in a while for all of them together."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, state: RetryCallState) -> None:
        if state.attempt_number >= 3 and time.monotonic() >= self._next:
            self._next = time.monotonic() + TELL_EVERY_S
            error = state.outcome.exception() if state.outcome else None
            log.warning("requests fail and are retried: %s", error)
