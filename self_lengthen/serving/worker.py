"""A FastChat worker on vLLM's AsyncLLM, with LoRA adapters by model name.

    python -m self_lengthen.serving.worker --base_model=DIR --port=P --controller=URL \
        [--adapter=NAME=DIR ...]

Takes a prompt, or messages that it renders with the tokenizer's own chat template; every sampling
field of vLLM; gives one final output a request. A request whose caller goes away is aborted; one
with `stop_repeat` ends where its text breaks one of those rules.
"""

import argparse
import asyncio
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import requests
import uvicorn
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastchat.constants import ErrorCode
from fastchat.serve.base_model_worker import BaseModelWorker
from jinja2 import TemplateError
from vllm import AsyncEngineArgs, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from self_lengthen.cli import Parser
from self_lengthen.limits import allow_many_connections
from self_lengthen.serving.disconnect import CallerGoneError, until_gone
from self_lengthen.serving.fields import SAMPLING_FIELDS
from self_lengthen.serving.key import KeyRequired, key_headers, read_key
from self_lengthen.serving.load import EngineLoad
from self_lengthen.serving.prompt import render_messages
from self_lengthen.serving.reply import WATCHED_TOKENS, read_reply, text_watch

STOP_S = 3  # seconds for requests in flight when we are stopped
CPU_BATCHED_TOKENS = 8192  # in one step
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last on Arm; of /proc/cpuinfo
CONTROLLER_TIMEOUT_S = 5  # of one call
CONTROLLER_DEADLINE_S = 300  # until it takes our registration: it may start later than we do
MOST_REQUESTS = 4096  # FastChat's own limit on a worker, out of the way: the engine queues better


class LoraWorker(BaseModelWorker):
    """What FastChat's controller sees: the base model and the adapters as models of one worker."""

    def __init__(self, args: argparse.Namespace, engine: AsyncLLM, load: EngineLoad) -> None:
        adapters = dict(adapter.split("=", 1) for adapter in args.adapter)
        address = f"http://{args.host}:{args.port}"
        names = [args.base_name, *adapters]
        super().__init__(
            args.controller,
            address,
            uuid.uuid4().hex[:8],
            args.base_model,
            names,
            MOST_REQUESTS,
            "raw",
        )
        self.engine, self.load = engine, load
        self.tokenizer = engine.get_tokenizer()
        self.context_len = engine.model_config.max_model_len
        self.running = self.answered = 0  # requests
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between our own processes
        self._session.headers.update(key_headers(read_key(args.api_key_file)))
        self._adapters = {
            name: LoRARequest(name, number, path)
            for number, (name, path) in enumerate(adapters.items(), 1)
        }

    def get_queue_length(self) -> int:
        return self.running

    def get_status(self) -> dict[str, Any]:
        """FastChat's fields, `speed` being what is worked on at once, and the engine's load."""
        status = {"model_names": self.model_names, "speed": self.load.capacity}
        return {**status, "queue_length": self.running, **self.load.status(self.running)}

    def register_to_controller(self) -> None:
        """Raises requests.RequestException when the controller is not there for long."""
        status = {"worker_status": self.get_status(), "multimodal": False}
        registration = {"worker_name": self.worker_addr, "check_heart_beat": True, **status}
        deadline = time.monotonic() + CONTROLLER_DEADLINE_S
        while True:
            try:
                return self._tell("register_worker", registration)
            except requests.RequestException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def send_heart_beat(self) -> None:
        """A controller that does not answer is told again at the next beat."""
        beat = {"worker_name": self.worker_addr, "queue_length": self.get_queue_length()}
        try:
            if not self._tell("receive_heart_beat", beat)["exist"]:  # it was started anew
                self.register_to_controller()
        except requests.RequestException as error:
            print(f"the controller does not answer: {error}", flush=True)

    def _tell(self, what: str, message: dict[str, Any]) -> Any:
        url = f"{self.controller_addr}/{what}"
        answer = self._session.post(url, json=message, timeout=CONTROLLER_TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()

    def say_answered(self) -> None:
        print(f"answered {self.answered} requests", flush=True)

    async def generate(self, params: dict[str, Any]) -> dict[str, Any]:
        """One final output. Errors come as FastChat has them: error_code and text."""
        token_ids = self._token_ids(params)
        room = self.context_len - len(token_ids)
        if room <= 0:
            text = f"the prompt has {len(token_ids)} tokens, the context {self.context_len}"
            return {"text": text, "error_code": ErrorCode.CONTEXT_OVERFLOW}
        sampling = self._sampling(params, room)
        request_id = uuid.uuid4().hex
        adapter = self._adapters.get(params.get("model", ""))
        prompt = {"prompt_token_ids": token_ids}
        generating = self.engine.generate(prompt, sampling, request_id, lora_request=adapter)
        written = await read_reply(generating, text_watch(params))
        self.answered += 1
        usage = {"prompt_tokens": len(token_ids), "completion_tokens": written.tokens}
        return {
            "text": written.text,
            "error_code": 0,
            "usage": {**usage, "total_tokens": sum(usage.values())},
            "finish_reason": written.finish_reason,
        }

    def _token_ids(self, params: dict[str, Any]) -> list[int]:
        if "messages" in params:
            text = render_messages(
                self.tokenizer, params["messages"], bool(params.get("continue_final_message"))
            )
            return self.tokenizer(text, add_special_tokens=False)[
                "input_ids"
            ]  # the template has the BOS
        return self.tokenizer(params["prompt"])["input_ids"]

    def _sampling(self, params: dict[str, Any], room: int) -> SamplingParams:
        given = {name: params[name] for name in SAMPLING_FIELDS if params.get(name) is not None}
        wanted = params.get("max_tokens") or room
        if params.get("stop_repeat"):
            given |= {"output_kind": RequestOutputKind.DELTA, "stream_interval": WATCHED_TOKENS}
        else:
            given["output_kind"] = RequestOutputKind.FINAL_ONLY
        # It takes token ids as JSON has them.
        return SamplingParams.from_optional(**given, max_tokens=min(wanted, room))


def make_app(worker: LoraWorker) -> FastAPI:
    app = FastAPI()

    @app.post("/worker_generate")
    async def generate(request: Request) -> JSONResponse:
        params = await request.json()
        worker.running += 1
        try:
            return JSONResponse(await until_gone(request, worker.generate(params)))
        except CallerGoneError:
            return failure(ErrorCode.INTERNAL_ERROR, "the caller went away")
        except EngineDeadError as error:
            os.kill(os.getpid(), signal.SIGTERM)  # whoever watches this worker sees it end
            return failure(ErrorCode.INTERNAL_ERROR, f"the engine died: {error}")
        except (ValueError, TemplateError) as error:  # vLLM's and the template's: not to be served
            return failure(ErrorCode.PARAM_OUT_OF_RANGE, str(error))
        finally:
            worker.running -= 1

    @app.post("/worker_get_status")
    async def status() -> dict[str, Any]:
        return worker.get_status()

    @app.post("/count_token")
    async def count_token(request: Request) -> dict[str, Any]:
        return worker.count_token(await request.json())

    @app.post("/worker_get_conv_template")
    async def conversation() -> dict[str, Any]:
        return worker.get_conv_template()

    @app.post("/model_details")
    async def details() -> dict[str, int]:
        return {"context_length": worker.context_len}

    @app.get("/health")
    async def health() -> JSONResponse:
        try:
            await worker.engine.check_health()
        except EngineDeadError as error:
            return JSONResponse({"status": str(error)}, status_code=503)
        return JSONResponse({"status": "ok", "running": worker.running})

    return app


def failure(code: ErrorCode, text: str) -> JSONResponse:
    return JSONResponse({"text": text, "error_code": code})


def cpu_settings(args: argparse.Namespace) -> dict[str, Any]:
    if not args.cpu:
        return {}
    return {
        "dtype": cpu_dtype(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "distributed_executor_backend": "uni",  # see plan.cpu_env
        "worker_cls": "self_lengthen.serving.cpu_lora.GroupedLoraWorker",
        "enforce_eager": True,  # compiling takes longer than a small run saves
        # vllm 0.28.0 ends when a prompt is split over two steps and its request has a seed: it sets
        # the offset of the request's generator, which one of the CPU does not have.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(args.max_model_len, CPU_BATCHED_TOKENS),
    }


def cpu_dtype(cpu_info: str) -> str:
    """The model's own where the processor computes in bfloat16; elsewhere that is ten times slower.

    `cpu_info`: the text of /proc/cpuinfo.
    """
    return "auto" if BFLOAT16_FLAGS & set(cpu_info.split()) else "float32"


def lora_limits(args: argparse.Namespace) -> dict[str, Any]:
    if not args.adapter:
        return {}  # LoRA slows the base model: off until there is an adapter
    return {
        "enable_lora": True,
        "max_loras": len(args.adapter),
        "max_lora_rank": args.max_lora_rank,
    }


def start_engine(args: argparse.Namespace, load: EngineLoad) -> AsyncLLM:
    """vLLM forks the engine's process off this one: to be called before there is an event loop."""
    same = ("max_model_len", "max_num_seqs", "trust_remote_code", "seed")  # vLLM's names
    settings = AsyncEngineArgs(
        model=args.base_model,
        tensor_parallel_size=args.tensor_parallel,
        **{name: getattr(args, name) for name in same},
        **cpu_settings(args),
        **lora_limits(args),
    )
    config = settings.create_engine_config(UsageContext.ENGINE_CONTEXT)
    if args.cpu:
        # There it asks for a new interpreter, only to preload what is preloaded in ours
        # (plan.cpu_env), and that imports vLLM again: 13 s of a start's 30.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    return AsyncLLM.from_vllm_config(config, stat_loggers=[load.attach])


async def serve(args: argparse.Namespace, engine: AsyncLLM, load: EngineLoad) -> None:
    allow_many_connections()
    worker = LoraWorker(args, engine, load)
    app = make_app(worker)
    app.router.on_shutdown.append(worker.say_answered)  # uvicorn ends the process by the signal
    if key := read_key(args.api_key_file):
        app.add_middleware(KeyRequired, key=key)
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        log_level="warning",
        timeout_graceful_shutdown=STOP_S,
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    await asyncio.to_thread(worker.init_heart_beat)
    try:
        await serving
    finally:
        engine.shutdown()


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--base_name", default="base", help="name of the base model as served")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--max_lora_rank", type=int, default=16)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--controller", required=True)
    parser.add_argument("--tensor_parallel", type=int, default=1)
    parser.add_argument("--max_model_len", type=int, required=True)
    parser.add_argument("--max_num_seqs", type=int, default=256)
    parser.add_argument("--cpu", action="store_true", help="no GPU: settings of the CPU backend")
    parser.add_argument("--trust_remote_code", action="store_true")
    parser.add_argument("--api_key_file", default="", help="holds the key that requests must have")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args, load = parse_args(), EngineLoad()
    uvloop.run(serve(args, start_engine(args, load), load))


if __name__ == "__main__":
    main()
