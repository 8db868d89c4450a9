"""FastChat's OpenAI-compatible API server, with every sampling field and the tokenizer's template.

    python -m self_lengthen.serving.api_server --port=P --controller=URL

FastChat's application with three routes replaced: /v1/models, /v1/chat/completions and
/v1/completions. The last two send messages or prompt to the worker as they are; the worker renders,
tokenises and clamps max_tokens to the context that is left, so that a request takes one hop: the
controller is asked once a second for all of them (workers.py). Failures that a retry may mend have
a 5xx status, others a 4xx one.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import aiohttp
import fastchat.serve.openai_api_server as fastchat_api
import uvicorn
import uvloop
from fastapi import Request
from fastapi.responses import JSONResponse
from fastchat.constants import ErrorCode
from fastchat.protocol.openai_api_protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ErrorResponse,
    ModelCard,
    ModelList,
)
from pydantic import BaseModel, Field

from self_lengthen.cli import Parser
from self_lengthen.limits import allow_many_connections
from self_lengthen.repetition import REPETITION
from self_lengthen.serving.disconnect import CallerGoneError, until_gone
from self_lengthen.serving.fields import SAMPLING_FIELDS, STOP_REPEAT
from self_lengthen.serving.key import KeyRequired, key_headers, read_key
from self_lengthen.serving.load import summed
from self_lengthen.serving.workers import NoWorkerError, Worker, Workers

WORKER_TIMEOUT_S = 3 * 3600  # a long reply in a full batch
STOP_S = 3  # seconds for requests in flight when we are stopped
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models")

T = TypeVar("T")

app = fastchat_api.app


class RepeatRule(BaseModel):
    unit: Literal["char", "word"]
    n: int = Field(ge=1)


class SamplingRequest(BaseModel):
    """vLLM's fields that FastChat's requests lack, and ours. None: the engine's default."""

    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    logit_bias: dict[int, float] | None = None
    bad_words: list[str] | None = None
    stop_repeat: list[RepeatRule] | None = None  # end the reply where its text breaks one


class ChatRequest(SamplingRequest, ChatCompletionRequest):
    messages: str | list[dict[str, str]]  # templates take text, no parts
    continue_final_message: bool = False  # the last message opens the assistant's turn
    add_generation_prompt: bool = True  # accepted as vLLM's server does; implied by the above


class TextRequest(SamplingRequest, CompletionRequest):
    prompt: str | list[str]  # no token ids


class RequestError(Exception):
    """What the client gets instead of a completion."""

    def __init__(self, status: int, code: int, message: str) -> None:
        self.status, self.code, self.message = status, code, message


@app.exception_handler(RequestError)
async def error_response(_: Request, error: RequestError) -> JSONResponse:
    body = ErrorResponse(message=error.message, code=error.code).model_dump()
    return JSONResponse(body, status_code=error.status)


async def post(url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """One hop, over connections that are kept."""
    try:
        async with app.state.session.post(url, json=payload) as response:
            if response.status >= 500:
                raise RequestError(502, ErrorCode.INTERNAL_ERROR, f"{url}: HTTP {response.status}")
            return await response.json()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RequestError(503, ErrorCode.CONTROLLER_WORKER_TIMEOUT, f"{url}: {error!r}") from error


async def list_workers() -> list[dict[str, Any]]:
    return (await post(f"{fastchat_api.app_settings.controller_address}/list_workers", {}))[
        "workers"
    ]


async def worker_for(model: str, prompt: str) -> Worker:
    try:
        return await app.state.workers.find(model, prompt)
    except NoWorkerError as error:
        if not error.models:
            raise RequestError(503, ErrorCode.CONTROLLER_NO_WORKER, "no worker is alive") from None
        message = f"model {model} is not served: {', '.join(sorted(error.models))}"
        raise RequestError(404, ErrorCode.INVALID_MODEL, message) from None


def check(request: ChatRequest | TextRequest) -> None:
    fault = fastchat_api.check_requests(request)
    if fault is not None:
        message = json.loads(fault.body)["message"]
        raise RequestError(400, ErrorCode.PARAM_OUT_OF_RANGE, message)
    if request.stream or getattr(request, "logprobs", None) is not None:
        message = "stream and logprobs are not offered: this server gives one final output"
        raise RequestError(400, ErrorCode.PARAM_OUT_OF_RANGE, message)


async def generate(worker: Worker, params: dict[str, Any]) -> dict[str, Any]:
    workers = app.state.workers
    with workers.busy_with_one_more(worker):
        try:
            return await post(f"{worker.address}/worker_generate", params)
        except RequestError:
            workers.avoid(worker)
            raise


async def complete(
    request: ChatRequest | TextRequest, source: dict[str, Any]
) -> list[dict[str, Any]]:
    """The request's n outputs for one source (messages or prompt)."""
    fields = request.model_dump(include={*SAMPLING_FIELDS, STOP_REPEAT, "model", "max_tokens"})
    payload = {**fields, **source}
    prompt = source.get("prompt", "")
    prompt += "".join(message.get("content", "") for message in source.get("messages", ()))
    seeds = [None if request.seed is None else request.seed + i for i in range(request.n or 1)]

    async def one(seed: int | None) -> dict[str, Any]:
        output = await generate(await worker_for(request.model, prompt), {**payload, "seed": seed})
        code = output["error_code"]
        if code:
            user_fault = code in (ErrorCode.CONTEXT_OVERFLOW, ErrorCode.PARAM_OUT_OF_RANGE)
            raise RequestError(400 if user_fault else 500, code, output["text"])
        if output["finish_reason"] not in ("stop", "length", REPETITION):
            raise RequestError(500, ErrorCode.INTERNAL_ERROR, f"ended: {output['finish_reason']}")
        return output

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(seed)) for seed in seeds]
    return [task.result() for task in tasks]


async def answer(http: Request, work: Awaitable[T]) -> T:
    """The result of `work`, unless the client goes away: then the generation is aborted."""
    try:
        return await until_gone(http, work)
    except CallerGoneError:
        raise RequestError(499, ErrorCode.INTERNAL_ERROR, "the client went away") from None
    except ExceptionGroup as errors:  # of the n outputs' tasks
        raise errors.exceptions[0] from None


def completion_of(
    kind: str, model: str, outputs: list[dict[str, Any]], parts: list[dict[str, Any]]
) -> JSONResponse:
    """OpenAI's body; by hand, for FastChat's classes know no finish_reason of ours."""
    choices = [
        {"index": index, **part, "finish_reason": output["finish_reason"]}
        for index, (output, part) in enumerate(zip(outputs, parts, strict=True))
    ]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {name: sum(output["usage"][name] for output in outputs) for name in names}
    head = {"id": uuid.uuid4().hex, "object": kind, "created": int(time.time()), "model": model}
    return JSONResponse({**head, "choices": choices, "usage": usage})


app.router.routes = [r for r in app.router.routes if getattr(r, "path", "") not in ROUTES]


@app.post(ROUTES[0])
async def chat_completion(request: ChatRequest, http: Request) -> JSONResponse:
    check(request)
    messages = request.messages
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    source = {"messages": messages, "continue_final_message": request.continue_final_message}
    outputs = await answer(http, complete(request, source))
    parts = [{"message": {"role": "assistant", "content": o["text"]}} for o in outputs]
    return completion_of("chat.completion", request.model, outputs, parts)


@app.post(ROUTES[1])
async def completion(request: TextRequest, http: Request) -> JSONResponse:
    check(request)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    outputs = []
    for prompt in prompts:
        outputs += await answer(http, complete(request, {"prompt": prompt}))
    parts = [{"text": output["text"]} for output in outputs]
    return completion_of("text_completion", request.model, outputs, parts)


@app.get(ROUTES[2])
async def list_models() -> ModelList:
    models = sorted(await app.state.workers.models())
    return ModelList(data=[ModelCard(id=name, root=name) for name in models])


@app.get("/v1/load")
async def load() -> dict[str, Any]:
    """What all engines do at this moment: see pace.Load."""
    await app.state.workers.models()
    asked = [post(f"{w.address}/worker_get_status", {}) for w in app.state.workers.all()]
    statuses = await asyncio.gather(*asked, return_exceptions=True)
    return asdict(summed([s for s in statuses if isinstance(s, dict) and "max_num_seqs" in s]))


async def serve(host: str, port: int, key: str) -> None:
    allow_many_connections()
    if key:
        app.add_middleware(KeyRequired, key=key)
    session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=WORKER_TIMEOUT_S),
        connector=aiohttp.TCPConnector(limit=0),
        headers=key_headers(key),
    )
    async with session:
        app.state.session, app.state.workers = session, Workers(list_workers)
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=STOP_S
        )
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--controller", required=True)
    parser.add_argument("--api_key_file", default="", help="holds the key that requests must have")
    args = parser.parse_args()
    fastchat_api.app_settings.controller_address = args.controller
    uvloop.run(serve(args.host, args.port, read_key(args.api_key_file)))
