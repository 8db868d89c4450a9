"""Claims about the API server: what reaches the worker, and what a client gets back.

The server is the real one, in a process of its own; controller and worker are small applications in
threads, which note what they are asked. No model is loaded.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from self_lengthen.endpoint import ContextOverflowError, Endpoint, EndpointError, Sampling
from self_lengthen.owned import Owned
from self_lengthen.pace import Load
from self_lengthen.serving.disconnect import CallerGoneError, until_gone
from self_lengthen.serving.fields import SAMPLING_FIELDS
from self_lengthen.serving.plan import ServerOptions, plan_server
from self_lengthen.serving.workers import RENEW_S

DEADLINE_S = 20
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Write."}

# Every field with a value that is nobody's default.
FIELDS = {
    "temperature": 0.3,
    "top_p": 0.4,
    "top_k": 7,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.6,
    "seed": 11,
    "stop": ["one", "two"],
    "stop_token_ids": [3, 4],
    "min_tokens": 2,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "logit_bias": {"5": 1.5},
    "bad_words": ["bad"],
}


@dataclass
class Cluster:
    """The stand-ins for controller and worker, and what they have seen."""

    worker_url: str = ""
    models: dict[str, str] = field(default_factory=dict)  # name -> address of its worker
    lists: int = 0  # how often the controller was asked for its workers
    asked: list[dict[str, Any]] = field(default_factory=list)
    gone: list[dict[str, Any]] = field(default_factory=list)  # asked, then given up by the caller
    answer: Callable[[dict[str, Any]], Any] = lambda params: reply()
    status: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        self.models = {"base": self.worker_url, "generator-iter1": self.worker_url}
        self.lists, self.asked, self.gone = 0, [], []
        self.answer = lambda params: reply()


def reply(text: str = "Once.", **changes: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": "stop", **changes}


def controller_app(cluster: Cluster) -> FastAPI:
    app = FastAPI()

    @app.post("/list_workers")
    async def workers() -> dict[str, Any]:
        cluster.lists += 1
        served: dict[str, list[str]] = {}
        for model, address in cluster.models.items():
            served.setdefault(address, []).append(model)
        rows = [{"address": a, "models": names, "capacity": 8} for a, names in served.items()]
        return {"workers": rows}

    @app.post("/refresh_all_workers")
    async def refresh() -> None:
        pass

    return app


def worker_app(cluster: Cluster) -> FastAPI:
    app = FastAPI()

    @app.post("/worker_get_status")
    async def status() -> dict[str, Any]:
        return cluster.status

    @app.post("/worker_generate")
    async def generate(request: Request) -> JSONResponse:
        params = await request.json()
        cluster.asked.append(params)

        async def work() -> Any:
            answer = cluster.answer(params)
            return await answer if asyncio.iscoroutine(answer) else answer

        try:
            answer = await until_gone(request, work())
        except CallerGoneError:
            cluster.gone.append(params)
            answer = reply()
        return answer if isinstance(answer, JSONResponse) else JSONResponse(answer)

    return app


class InThread:
    """An application on a free port of this machine."""

    def __init__(self, app: FastAPI) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        run = self._server.run
        self._thread = threading.Thread(target=run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> "InThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(DEADLINE_S)
        self._socket.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, str]]:
    """Controller, worker and the real API server; its address."""
    cluster = Cluster()
    logs = tmp_path_factory.mktemp("logs")
    with InThread(controller_app(cluster)) as controller, InThread(worker_app(cluster)) as worker:
        cluster.worker_url = worker.url
        planned = ServerOptions("/model", {}, [[]], 4096, log_dir=logs)
        service = plan_server(planned, "base").api
        command = [a for a in service.command if not a.startswith("--controller=")]
        command.append(f"--controller={controller.url}")
        with Owned("api_server", command, logs / "log", service.env, grace_s=1) as server:
            wait_for_port(service.url, server, logs / "log")
            yield cluster, service.url


def wait_for_port(url: str, server: Owned, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            return socket.create_connection(("127.0.0.1", httpx.URL(url).port), 1).close()
        except OSError:
            time.sleep(0.05)


@pytest.fixture
def cluster(running: tuple[Cluster, str]) -> Cluster:
    running[0].reset()
    # It lists the workers anew.
    httpx.get(f"{running[1]}/v1/models", timeout=DEADLINE_S, trust_env=False)
    return running[0]


@pytest.fixture
def client(running: tuple[Cluster, str], cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running[1], timeout=DEADLINE_S, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, route: str = CHAT, **given: Any) -> httpx.Response:
    source = {"messages": [USER]} if route == CHAT else {"prompt": "Write."}
    return client.post(route, json={"model": "base", **source, **given})


def until(happens: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


@pytest.fixture(params=[CHAT, TEXT], ids=["chat", "text"])
def route(request: pytest.FixtureRequest) -> str:
    return request.param


class TestWhatReachesTheWorker:
    def test_every_sampling_field(self, client, cluster, route):
        assert FIELDS.keys() == set(SAMPLING_FIELDS)
        assert ask(client, route, **FIELDS, max_tokens=99).status_code == 200
        (asked,) = cluster.asked
        assert {name: asked[name] for name in FIELDS} == FIELDS
        assert (asked["model"], asked["max_tokens"]) == ("base", 99)

    def test_a_field_that_is_not_given_is_left_to_the_engine(self, client, cluster):
        ask(client)
        (asked,) = cluster.asked
        fastchats = {"temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty"}
        assert {name for name in FIELDS if asked[name] is not None} == fastchats
        assert asked["max_tokens"] is None

    def test_the_rules_at_which_to_stop(self, client, cluster, route):
        rules = [{"unit": "char", "n": 13}, {"unit": "word", "n": 10}]
        assert ask(client, route, stop_repeat=rules).status_code == 200
        assert cluster.asked[0]["stop_repeat"] == rules

    def test_messages_as_they_are(self, client, cluster):
        messages = [
            {"role": "system", "content": "  你写得很长。\n"},
            USER,
            {"role": "assistant", "content": "Once upon \n\n"},
        ]
        ask(client, messages=messages, continue_final_message=True, add_generation_prompt=False)
        (asked,) = cluster.asked
        assert asked["messages"] == messages
        assert asked["continue_final_message"] is True
        assert "prompt" not in asked

    def test_a_message_alone_is_the_users(self, client, cluster):
        ask(client, messages="Write.")
        (asked,) = cluster.asked
        assert asked["messages"] == [USER]
        assert asked["continue_final_message"] is False

    def test_a_prompt_as_it_is(self, client, cluster):
        ask(client, TEXT, prompt="  Once upon\n\n")
        (asked,) = cluster.asked
        assert asked["prompt"] == "  Once upon\n\n"
        assert "messages" not in asked

    def test_the_name_of_the_adapter(self, client, cluster):
        ask(client, model="generator-iter1")
        assert [asked["model"] for asked in cluster.asked] == ["generator-iter1"]

    def test_a_request_takes_one_hop(self, client, cluster):
        started = time.monotonic()
        for _ in range(30):
            ask(client)
        assert len(cluster.asked) == 30
        assert cluster.lists <= 1 + (time.monotonic() - started) / RENEW_S

    def test_more_requests_at_once_than_aiohttp_would_send(self, running, cluster):
        """Its own limit is 100 connections."""
        at_once = 105

        async def all_there() -> dict[str, Any]:
            deadline = time.monotonic() + DEADLINE_S
            while len(cluster.asked) < at_once and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            return reply(str(len(cluster.asked)))

        async def ask_all() -> list[httpx.Response]:
            settings = {"timeout": 3 * DEADLINE_S, "limits": httpx.Limits(max_connections=None)}
            async with httpx.AsyncClient(trust_env=False, **settings) as client:
                request = {"model": "base", "messages": [USER]}
                calls = [client.post(running[1] + CHAT, json=request) for _ in range(at_once)]
                return await asyncio.gather(*calls)

        cluster.answer = lambda params: all_there()
        contents = {r.json()["choices"][0]["message"]["content"] for r in asyncio.run(ask_all())}
        assert contents == {str(at_once)}


class TestWhatComesBack:
    def test_a_chat_completion(self, client):
        body = ask(client).json()
        assert (body["object"], body["model"]) == ("chat.completion", "base")
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Once."},
                "finish_reason": "stop",
            }
        ]
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}

    def test_a_text_completion(self, client, cluster):
        cluster.answer = lambda params: reply(finish_reason="length")
        (choice,) = ask(client, TEXT).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("Once.", "length")

    def test_a_reply_that_was_stopped_at_a_repetition_is_a_reply(self, client, cluster, route):
        cluster.answer = lambda params: reply(finish_reason="repetition")
        assert ask(client, route).json()["choices"][0]["finish_reason"] == "repetition"

    def test_n_choices_with_different_seeds(self, client, cluster, route):
        cluster.answer = lambda params: reply(f"seed {params['seed']}")
        body = ask(client, route, n=3, seed=11).json()
        assert sorted(asked["seed"] for asked in cluster.asked) == [11, 12, 13]
        texts = [c["text"] if route == TEXT else c["message"]["content"] for c in body["choices"]]
        assert texts == ["seed 11", "seed 12", "seed 13"]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"] == {"prompt_tokens": 15, "completion_tokens": 6, "total_tokens": 21}

    def test_n_choices_without_a_seed_have_none(self, client, cluster):
        ask(client, n=2)
        assert [asked["seed"] for asked in cluster.asked] == [None, None]

    def test_several_prompts(self, client, cluster):
        cluster.answer = lambda params: reply(params["prompt"])
        body = ask(client, TEXT, prompt=["one", "two"], n=2).json()
        assert [choice["text"] for choice in body["choices"]] == ["one", "one", "two", "two"]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert body["usage"]["total_tokens"] == 28

    def test_the_list_of_models(self, client):
        listed = client.get("/v1/models").json()["data"]
        assert sorted(model["id"] for model in listed) == ["base", "generator-iter1"]


class TestLoad:
    BUSY = {"running": 6, "waiting": 0, "max_num_seqs": 8, "kv_tokens": 100, "kv_usage": 0.5}
    BUSY["nearly_free"] = 4

    @staticmethod
    async def load(url: str) -> Load | None:
        async with Endpoint(f"{url}/v1") as endpoint:
            return await endpoint.load()

    def test_our_own_client_learns_what_the_engines_do(self, running, cluster):
        cluster.status = self.BUSY
        assert asyncio.run(self.load(running[1])) == Load(1, 8, 4, 6, 0, 0.25)

    def test_a_worker_that_does_not_tell_or_is_gone_is_left_out(self, running, cluster):
        cluster.status = {"queue_length": 3}
        assert asyncio.run(self.load(running[1])) == Load(0, 0, 0, 0, 0, 1.0)
        cluster.models["base"] = "http://127.0.0.1:9"
        cluster.status = self.BUSY
        assert asyncio.run(self.load(running[1])) == Load(1, 8, 4, 6, 0, 0.25)


class TestRefusals:
    """4xx: the same request would fail again."""

    def test_an_unknown_model_names_those_that_are_served(self, client, cluster, route):
        response = ask(client, route, model="nobody")
        assert response.status_code == 404
        assert response.json() == {
            "object": "error",
            "message": "model nobody is not served: base, generator-iter1",
            "code": 40301,
        }
        assert cluster.asked == []

    def test_our_own_client_does_not_ask_for_an_unknown_model_again(self, running, cluster):
        with pytest.raises(EndpointError, match="HTTP 404 .*model nobody is not served"):
            asyncio.run(self.chat(running[1], "nobody"))
        assert cluster.lists <= 2  # once for the model, once by the clock

    def test_our_own_client_knows_an_overflow(self, running, cluster):
        text = "the prompt has 5000 tokens, the context 4096"
        cluster.answer = lambda params: {"text": text, "error_code": 40303}
        with pytest.raises(ContextOverflowError, match=text):
            asyncio.run(self.chat(running[1], "base"))
        assert len(cluster.asked) == 1

    @staticmethod
    async def chat(url: str, model: str) -> None:
        async with Endpoint(f"{url}/v1") as endpoint:
            await endpoint.chat(model, "Write.", Sampling(), seed=1)

    @pytest.mark.parametrize("code", [40302, 40303])
    def test_what_the_worker_finds_wrong_with_the_request(self, client, cluster, route, code):
        cluster.answer = lambda params: {"text": "the reason", "error_code": code}
        response = ask(client, route)
        body = {"object": "error", "message": "the reason", "code": code}
        assert (response.status_code, response.json()) == (400, body)

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"stream": True}, "stream and logprobs are not offered"),
            ({"temperature": 3}, "greater than the maximum of 2 - 'temperature'"),
            ({"max_tokens": 0}, "less than the minimum of 1 - 'max_tokens'"),
            ({"n": 0}, "less than the minimum of 1 - 'n'"),
            ({"top_k": 0}, "Either set top_k to -1 or >=1"),
            ({"temperature": "hot"}, "valid number"),
            ({"logit_bias": {"word": 1.0}}, "valid integer"),
            ({"stop_repeat": [{"unit": "line", "n": 3}]}, "'char' or 'word'"),
            ({"stop_repeat": [{"unit": "word", "n": 0}]}, "greater than or equal to 1"),
        ],
    )
    def test_a_field_that_cannot_be_served(self, client, cluster, route, given, reason):
        response = ask(client, route, **given)
        assert response.status_code == 400
        assert reason in response.json()["message"]
        assert cluster.asked == []

    @pytest.mark.parametrize(
        ("path", "given"),
        [
            (TEXT, {"prompt": [1, 2, 3]}),
            (TEXT, {"prompt": [[1, 2], [3]]}),
            (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}),
        ],
    )
    def test_what_is_no_text(self, client, cluster, path, given):
        assert ask(client, path, **given).status_code == 400
        assert cluster.asked == []

    def test_logprobs(self, client, cluster):
        assert ask(client, TEXT, logprobs=1).status_code == 400
        assert cluster.asked == []


class TestFailures:
    """5xx: another try may find a worker that does it."""

    def test_no_worker(self, client, cluster, route):
        cluster.models = {}
        client.get("/v1/models")
        response = ask(client, route)
        assert (response.status_code, response.json()["code"]) == (503, 50005)
        assert response.json()["message"] == "no worker is alive"

    def test_a_worker_that_comes_later_is_asked_at_once(self, client, cluster):
        cluster.models = {}
        until(lambda: ask(client).status_code == 503, 2 * RENEW_S)
        cluster.models = {"base": cluster.worker_url}
        assert ask(client).status_code == 200

    def test_a_worker_that_is_not_there_any_more(self, client, cluster, route):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        cluster.models = {"base": address}
        client.get("/v1/models")  # it lists the workers anew
        response = ask(client, route)
        assert (response.status_code, response.json()["code"]) == (503, 50006)
        assert address in response.json()["message"]

    @pytest.mark.parametrize("code", [50001, 50002])
    def test_what_the_worker_could_not_do(self, client, cluster, route, code):
        cluster.answer = lambda params: {"text": "the engine died", "error_code": code}
        response = ask(client, route)
        body = {"object": "error", "message": "the engine died", "code": code}
        assert (response.status_code, response.json()) == (500, body)

    def test_a_worker_that_crashes_on_a_request(self, client, cluster):
        cluster.answer = lambda params: JSONResponse({}, status_code=500)
        response = ask(client)
        assert response.status_code == 502
        assert "HTTP 500" in response.json()["message"]

    @pytest.mark.parametrize("ended", ["abort", None])
    def test_a_reply_that_was_aborted_is_no_reply(self, client, cluster, ended):
        cluster.answer = lambda params: reply("half a", finish_reason=ended)
        assert ask(client).status_code == 500

    def test_one_of_n_that_fails_ends_the_others(self, client, cluster):
        async def forever() -> None:
            await asyncio.sleep(DEADLINE_S)

        def answer(params: dict[str, Any]) -> Any:
            failed = {"text": "out of memory", "error_code": 50002}
            return failed if params["seed"] == 12 else forever()

        cluster.answer = answer
        response = ask(client, n=3, seed=11)
        assert (response.status_code, response.json()["message"]) == (500, "out of memory")
        until(lambda: len(cluster.gone) == len(cluster.asked) - 1, 2)


@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_goes_away_ends_the_generation(running, client, cluster, route, count):
    """Nobody would read it, and it would take the place of one that is read."""

    async def forever() -> None:
        await asyncio.sleep(DEADLINE_S)

    cluster.answer = lambda params: forever()

    async def ask_and_go() -> None:
        source = {"messages": [USER]} if route == CHAT else {"prompt": "Write."}
        async with httpx.AsyncClient(base_url=running[1], trust_env=False) as hasty:
            request = {"model": "base", "n": count, **source}
            asking = asyncio.ensure_future(hasty.post(route, json=request))
            await asyncio.to_thread(until, lambda: len(cluster.asked) == count, DEADLINE_S)
            assert cluster.gone == []
            asking.cancel()

    asyncio.run(ask_and_go())
    until(lambda: len(cluster.gone) == count, 2)
    cluster.answer = lambda params: reply()
    assert ask(client, route).status_code == 200
