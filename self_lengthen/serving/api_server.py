"""FastChat's OpenAI-compatible API server, with every sampling field and the tokenizer's template.

    python -m self_lengthen.serving.api_server --port=P --controller=URL

FastChat's application with three routes replaced: /v1/models, /v1/chat/completions and
/v1/completions. The last two send messages or prompt to the worker as they are; the worker renders,
tokenises and clamps max_tokens to the context that is left, so that a request takes one hop to the
controller and one to a worker. Failures that a retry may mend have a 5xx status, others a 4xx one.
"""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

import aiohttp
import fastchat.serve.openai_api_server as fastchat_api
import uvicorn
from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from fastchat.constants import ErrorCode
from fastchat.protocol.openai_api_protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatMessage,
    CompletionRequest,
    CompletionResponse,
    CompletionResponseChoice,
    ErrorResponse,
    ModelCard,
    ModelList,
    UsageInfo,
)
from pydantic import BaseModel

from self_lengthen.cli import Parser
from self_lengthen.serving.disconnect import CallerGoneError, until_gone
from self_lengthen.serving.fields import SAMPLING_FIELDS
from self_lengthen.serving.key import KeyRequired, key_headers, read_key

WORKER_TIMEOUT_S = 3 * 3600  # a long reply in a full batch
STOP_S = 3  # seconds for requests in flight when we are stopped
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models")

T = TypeVar("T")

app = fastchat_api.app


class SamplingRequest(BaseModel):
    """vLLM's fields that FastChat's requests lack. None: the engine's default."""

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


async def served_models() -> list[str]:
    controller = fastchat_api.app_settings.controller_address
    return sorted((await post(f"{controller}/list_models", {}))["models"])


async def worker_for(model: str) -> str:
    controller = fastchat_api.app_settings.controller_address
    address = (await post(f"{controller}/get_worker_address", {"model": model}))["address"]
    if address:
        return address
    models = await served_models()
    if not models:
        raise RequestError(503, ErrorCode.CONTROLLER_NO_WORKER, "no worker is alive")
    message = f"model {model} is not served: {', '.join(models)}"
    raise RequestError(404, ErrorCode.INVALID_MODEL, message)


def check(request: ChatRequest | TextRequest) -> None:
    fault = fastchat_api.check_requests(request)
    if fault is not None:
        message = json.loads(fault.body)["message"]
        raise RequestError(400, ErrorCode.PARAM_OUT_OF_RANGE, message)
    if request.stream or getattr(request, "logprobs", None) is not None:
        message = "stream and logprobs are not offered: this server gives one final output"
        raise RequestError(400, ErrorCode.PARAM_OUT_OF_RANGE, message)


async def complete(
    request: ChatRequest | TextRequest, source: dict[str, Any]
) -> list[dict[str, Any]]:
    """The request's n outputs for one source (messages or prompt)."""
    fields = request.model_dump(include={*SAMPLING_FIELDS, "model", "max_tokens"})
    payload = {**fields, **source}
    seeds = [None if request.seed is None else request.seed + i for i in range(request.n or 1)]

    async def one(seed: int | None) -> dict[str, Any]:
        output = await post(
            f"{await worker_for(request.model)}/worker_generate", {**payload, "seed": seed}
        )
        code = output["error_code"]
        if code:
            user_fault = code in (ErrorCode.CONTEXT_OVERFLOW, ErrorCode.PARAM_OUT_OF_RANGE)
            raise RequestError(400 if user_fault else 500, code, output["text"])
        if output["finish_reason"] not in ("stop", "length"):
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


def usage(outputs: list[dict[str, Any]]) -> UsageInfo:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return UsageInfo(**{name: sum(o["usage"][name] for o in outputs) for name in names})


app.router.routes = [r for r in app.router.routes if getattr(r, "path", "") not in ROUTES]


@app.post(ROUTES[0], dependencies=[Depends(fastchat_api.check_api_key)])
async def chat_completion(request: ChatRequest, http: Request) -> ChatCompletionResponse:
    check(request)
    messages = request.messages
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    source = {"messages": messages, "continue_final_message": request.continue_final_message}
    outputs = await answer(http, complete(request, source))
    choices = [
        ChatCompletionResponseChoice(
            index=index,
            message=ChatMessage(role="assistant", content=output["text"]),
            finish_reason=output["finish_reason"],
        )
        for index, output in enumerate(outputs)
    ]
    return ChatCompletionResponse(model=request.model, choices=choices, usage=usage(outputs))


@app.post(ROUTES[1], dependencies=[Depends(fastchat_api.check_api_key)])
async def completion(request: TextRequest, http: Request) -> CompletionResponse:
    check(request)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    outputs = []
    for prompt in prompts:
        outputs += await answer(http, complete(request, {"prompt": prompt}))
    choices = [
        CompletionResponseChoice(
            index=index, text=output["text"], finish_reason=output["finish_reason"]
        )
        for index, output in enumerate(outputs)
    ]
    return CompletionResponse(model=request.model, choices=choices, usage=usage(outputs))


@app.get(ROUTES[2], dependencies=[Depends(fastchat_api.check_api_key)])
async def list_models() -> ModelList:
    return ModelList(data=[ModelCard(id=name, root=name) for name in await served_models()])


async def serve(host: str, port: int, key: str) -> None:
    if key:
        app.add_middleware(KeyRequired, key=key)
    session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=WORKER_TIMEOUT_S),
        connector=aiohttp.TCPConnector(limit=0),
        headers=key_headers(key),
    )
    async with session:
        app.state.session = session
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
    asyncio.run(serve(args.host, args.port, read_key(args.api_key_file)))
