"""Claims about `self_lengthen.endpoint` against a scripted server on a real socket."""

import asyncio
import os
import resource
import threading
import time
from collections.abc import Callable

import pytest
from fakes import FakeServer, Turn, error
from tenacity import RetryCallState, wait_fixed, wait_random_exponential

from self_lengthen import endpoint
from self_lengthen.endpoint import (
    STOP_STRINGS,
    ContextOverflowError,
    Endpoint,
    EndpointError,
    Reply,
    Sampling,
)
from self_lengthen.family import NgramRule

OVERFLOW = 40303


def ask(url: str, *, deadline_s: float = 20.0, count: int = 1, **call: object) -> list[Reply]:
    """`count` calls at once."""

    async def main() -> list[Reply]:
        async with Endpoint(url, api_key="secret", retry_deadline_s=deadline_s) as served:
            defaults = {"model": "base", "user": "Write.", "sampling": Sampling(), "seed": 7}
            calls = [served.chat(**{**defaults, **call}) for _ in range(count)]
            return await asyncio.gather(*calls)

    return asyncio.run(main())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait 10 ms."""
    monkeypatch.setattr(endpoint, "wait_random_exponential", lambda **_: wait_fixed(0.01))


class TestRequest:
    def test_the_body_carries_every_sampling_field_and_the_bare_message(self):
        with FakeServer() as server:
            ask(server.url, user="写一篇长文。", model="generator-iter1", seed=123)
        (request,) = server.requests
        assert request.path == "/v1/chat/completions"
        assert request.headers["authorization"] == "Bearer secret"
        assert request.body == {
            "model": "generator-iter1",
            "messages": [{"role": "user", "content": "写一篇长文。"}],
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "repetition_penalty": 1.1,
            "max_tokens": 16384,
            "seed": 123,
            "stop": ["<|eot_id|>", "<|im_end|>", "\n\n---", "\n---", "---", "\n\n\n"],
        }

    def test_what_is_left_to_the_server_is_not_sent(self):
        foreign = Sampling(None, None, None, None, stop=())
        with FakeServer() as server:
            ask(server.url, sampling=foreign)
        body = server.requests[0].body
        assert body.keys() == {"model", "messages", "max_tokens", "seed"}

    def test_rules_at_which_to_stop_are_an_extension_of_the_request(self):
        rules = (NgramRule("char", 13), NgramRule("word", 10))
        with FakeServer() as server:
            ask(server.url, sampling=Sampling(stop_repeat=rules))
            ask(server.url)
        first, second = (request.body for request in server.requests)
        assert first.pop("stop_repeat") == [{"unit": "char", "n": 13}, {"unit": "word", "n": 10}]
        assert first == second

    def test_an_opened_turn_is_the_last_message_and_is_to_be_continued(self):
        sampling = Sampling(max_tokens=99, stop=(*STOP_STRINGS, "\nInstruction 4"))
        with FakeServer() as server:
            ask(server.url, opened_with="Instruction 1: A\nInstruction 2:", sampling=sampling)
        body = server.requests[0].body
        assert body["messages"] == [
            {"role": "user", "content": "Write."},
            {"role": "assistant", "content": "Instruction 1: A\nInstruction 2:"},
        ]
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
        assert body["max_tokens"] == 99
        assert body["stop"][-1] == "\nInstruction 4"

    def test_the_reply_says_why_it_ended_and_what_it_cost(self):
        with FakeServer([Turn(text=" 五个字。", finish_reason="length")]) as server:
            replies = ask(server.url)
        # usage as the server gave it: 7 for the prompt, 4 words for the reply
        assert replies == [Reply(" 五个字。", "length", 7, 4)]

    def test_a_reply_without_text_is_empty(self):
        body = {"choices": [{"index": 0, "message": {"content": None}, "finish_reason": "stop"}]}
        with FakeServer([Turn(body=body)]) as server:
            assert ask(server.url) == [Reply("", "stop", 0, 0)]

    def test_more_calls_than_httpx_pools_by_default_are_in_flight_at_once(self):
        together = threading.Barrier(110, timeout=20)  # breaks unless all 110 have arrived

        def turn(_: object) -> Turn:
            together.wait()
            return Turn()

        with FakeServer(turn) as server:
            assert len(ask(server.url, count=110, deadline_s=0)) == 110
        assert len(server.requests) == 110

    def test_a_low_limit_of_open_files_is_raised(self):
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        low = len(os.listdir("/proc/self/fd")) + 64  # what is open already has to fit in
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
        try:
            with FakeServer() as server:
                ask(server.url)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(before[1], 1024) > low
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    def test_a_proxy_of_the_environment_is_not_asked(self, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with FakeServer() as server:
            assert ask(server.url, deadline_s=0)[0].text == "Done."


class TestLoad:
    def test_a_server_that_does_not_tell_its_load_is_no_error(self):
        async def load(url: str) -> object:
            async with Endpoint(url) as served:
                return await served.load()

        with FakeServer() as server:  # knows no GET
            assert asyncio.run(load(server.url)) is None
        assert asyncio.run(load("http://127.0.0.1:9/v1")) is None


TRANSIENT = {
    "500": Turn(500),
    "502": Turn(502),
    "503": Turn(503),
    "429": Turn(429),
    "no reply": Turn(hang_up="before"),
    "half a reply": Turn(hang_up="within"),
}


@pytest.mark.usefixtures("quick")
class TestRetries:
    @pytest.mark.parametrize("turn", TRANSIENT.values(), ids=TRANSIENT)
    def test_a_passing_failure_is_tried_again(self, turn):
        with FakeServer([turn, turn, turn, Turn(text="At last.")]) as server:
            assert ask(server.url)[0].text == "At last."
        assert len(server.requests) == 4
        assert all(request.body == server.requests[0].body for request in server.requests)

    def test_a_time_out_is_tried_again(self, monkeypatch):
        monkeypatch.setattr(endpoint, "REQUEST_TIMEOUT_S", 0.3)
        with FakeServer([Turn(delay_s=1.5), Turn(text="At last.")]) as server:
            started = time.monotonic()
            assert ask(server.url)[0].text == "At last."
            assert time.monotonic() - started < 1.4
            assert len(server.requests) == 2

    def test_a_server_that_starts_late_is_waited_for(self):
        with FakeServer() as gone:
            port = gone.port
        answered = threading.Event()

        def start() -> None:
            time.sleep(0.3)
            with FakeServer([Turn(text="Here now.")], port=port):
                answered.wait(20)

        starter = threading.Thread(target=start)
        starter.start()
        assert ask(f"http://127.0.0.1:{port}/v1")[0].text == "Here now."
        answered.set()
        starter.join()

    @pytest.mark.parametrize("turn", [TRANSIENT["503"], TRANSIENT["no reply"]])
    def test_retries_end_at_the_deadline_with_the_last_failure(self, turn):
        with FakeServer(lambda _: turn) as server:
            started = time.monotonic()
            with pytest.raises(EndpointError, match=f"127.0.0.1:{server.port}"):
                ask(server.url, deadline_s=0.2)
            assert 0.2 <= time.monotonic() - started < 5
        assert len(server.requests) >= 2

    def test_a_refused_connection_ends_at_the_deadline_and_names_the_server(self):
        with FakeServer() as server:
            url = server.url
        started = time.monotonic()
        with pytest.raises(EndpointError, match=url):
            ask(url, deadline_s=0.2)
        assert 0.2 <= time.monotonic() - started < 5

    def test_a_long_generation_does_not_use_up_the_deadline(self):
        # Its worker dies after 0.8 s of work, with 0.6 s to recover: the failure starts the clock.
        script = [Turn(500, delay_s=0.8), Turn(503), Turn(text="On another worker.")]
        with FakeServer(script) as server:
            assert ask(server.url, deadline_s=0.6)[0].text == "On another worker."
        assert len(server.requests) == 3

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
    def test_a_refusal_is_never_tried_again(self, status):
        turn = Turn(status, body=error(40001, "model x is not served: base"))
        with FakeServer([turn]) as server:
            with pytest.raises(EndpointError) as refusal:
                ask(server.url)
            assert len(server.requests) == 1
        assert f"HTTP {status}" in str(refusal.value)
        assert "model x is not served: base" in str(refusal.value)
        assert server.url in str(refusal.value)
        assert not isinstance(refusal.value, ContextOverflowError)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (OVERFLOW, "4097 tokens"),
            (str(OVERFLOW), "4097 tokens"),
            ("context_length_exceeded", "4097 tokens"),
            (400, "This model's maximum context length is 4096 tokens, not 4097 tokens."),
        ],
    )
    def test_a_full_context_has_its_own_error_and_is_not_tried_again(self, code, message):
        with FakeServer([Turn(400, body=error(code, message))]) as server:
            with pytest.raises(ContextOverflowError, match="4097 tokens"):
                ask(server.url)
            assert len(server.requests) == 1

    def test_a_refusal_as_openai_writes_it_is_read_too(self):
        body = {"error": {"message": "too long", "code": "context_length_exceeded"}}
        with (
            FakeServer([Turn(400, body=body)]) as server,
            pytest.raises(ContextOverflowError, match="HTTP 400 .*: too long"),
        ):
            ask(server.url)

    @pytest.mark.parametrize("turn", TRANSIENT.values(), ids=TRANSIENT)
    def test_the_client_does_not_retry_by_itself(self, turn):
        # Neither when the server asks for it.
        headers = {"x-should-retry": "true", "Retry-After": "0"}
        asked = Turn(turn.status, hang_up=turn.hang_up, headers=headers)
        with FakeServer([asked]) as server:
            with pytest.raises(EndpointError):
                ask(server.url, deadline_s=0)
            assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "turn",
        [
            Turn(body=b"<html>welcome</html>", headers={"Content-Type": "text/html"}),
            Turn(body=b"{"),
            Turn(body={"choices": []}),
            Turn(body={"object": "list"}),
        ],
        ids=["page", "half JSON", "no choice", "other JSON"],
    )
    def test_an_answer_that_is_no_completion_is_an_error_of_the_server(self, turn):
        with FakeServer([turn]) as server:
            with pytest.raises(EndpointError, match=server.url):
                ask(server.url)
            assert len(server.requests) == 1

    def test_a_cancelled_call_ends_at_once(self):
        async def main(url: str) -> None:
            async with Endpoint(url) as served:
                call = asyncio.create_task(served.chat("base", "Write.", Sampling(), seed=1))
                await asyncio.sleep(0.2)  # in the middle of retries
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

        with FakeServer(lambda _: Turn(503)) as server:
            started = time.monotonic()
            asyncio.run(main(server.url))
            assert time.monotonic() - started < 5


class TestBackOff:
    def test_waits_are_jittered_and_double_up_to_half_a_minute(self, monkeypatch):
        waits: list[float] = []
        monkeypatch.setattr(endpoint, "wait_random_exponential", recorder(waits))
        with FakeServer([Turn(503)] * 40) as server:
            ask(server.url)
        assert len(server.requests) == 41
        # Before retry n at most 0.5 x 2^(n-1) seconds, 30 at most: 0.5, 1, 2, 4, 8, 16, 30, 30, ...
        most = [min(30.0, 0.5 * 2**number) for number in range(40)]
        assert all(0 <= wait <= limit for wait, limit in zip(waits, most, strict=True))
        # 33 waits even over 0 to 30 s: mean 15, its deviation 8.66 / sqrt(33) = 1.5
        assert 8 < sum(waits[7:]) / 33 < 22
        assert len(set(waits)) == 40


def recorder(waits: list[float]) -> Callable[..., object]:
    """Stands in for tenacity's wait: notes how long it would be, and does not wait."""

    def make(**options: float) -> Callable[[RetryCallState], float]:
        real = wait_random_exponential(**options)

        def wait(state: RetryCallState) -> float:
            waits.append(real(state))
            return 0.0

        return wait

    return make
