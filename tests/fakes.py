"""Stand-ins for a served model: `FakeChat` in the process, `FakeServer` behind a real socket.

    chat = FakeChat(["a reply", said("a reply cut", "length"), ContextOverflowError("full")])
    chat = FakeChat(lambda call: f"a reply to {call.user}")
    with FakeServer([Turn(503), Turn(text="a reply")]) as server: Endpoint(server.url)

Both record what they were asked. `FakeModel` computes replies that do all four tasks of a family;
`prose` and `article` are texts of known length that pass every check.
"""

import asyncio
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from self_lengthen.endpoint import ContextOverflowError, EndpointError, Reply, Sampling
from self_lengthen.family import ModelFamily
from self_lengthen.text import count_words


def prose(words: int, start: int = 0) -> str:
    """One paragraph of so many words, all different."""
    return " ".join(f"w{number}" for number in range(start, start + words)) + "."


def article(*words: int, start: int = 0) -> str:
    """Paragraphs of so many words each, all words different."""
    starts = [start + sum(words[:index]) for index in range(len(words))]
    return "\n\n".join(prose(*pair) for pair in zip(words, starts, strict=True))


def hanzi(words: int, start: int = 0) -> str:
    """One Chinese paragraph of so many characters, its full stop included, all different."""
    return "".join(chr(0x4E00 + start + number) for number in range(words - 1)) + "。"


def said(text: str, finish_reason: str | None = "stop") -> Reply:
    return Reply(text, finish_reason, prompt_tokens=7, completion_tokens=count_words(text))


@dataclass(frozen=True)
class Call:
    model: str
    user: str
    sampling: Sampling
    seed: int
    opened_with: str


Answer = str | Reply | Exception


class FakeChat:
    """extension.Chat with queued or computed answers; an exception among them is raised."""

    def __init__(
        self,
        answers: Iterable[Answer] | Callable[[Call], Answer],
        pause: Callable[[Call], float] = lambda call: 0.0,
    ) -> None:
        self._answer = answers if callable(answers) else _queue(answers)
        self._pause = pause
        self.calls: list[Call] = []
        self.replies: list[Reply] = []

    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply:
        call = Call(model, user, sampling, seed, opened_with)
        self.calls.append(call)
        answer = self._answer(call)
        await asyncio.sleep(self._pause(call))
        if isinstance(answer, Exception):
            raise answer
        reply = said(answer) if isinstance(answer, str) else answer
        self.replies.append(reply)
        return reply

    async def load(self) -> None:
        """It has no engine to tell of."""

    async def __aenter__(self) -> "FakeChat":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def _queue(answers: Iterable[Answer]) -> Callable[[Call], Answer]:
    queue = deque(answers)

    def next_answer(call: Call) -> Answer:
        assert queue, f"one call more than answers: {call}"
        return queue.popleft()

    return next_answer


@dataclass
class FakeModel:
    """Does a family's four tasks. The answer to a call follows from the call alone.

    `trouble` is the share of calls that go wrong in a way that costs an attempt; `failing_calls`
    are the numbers (from 0) of the calls that fail for good.
    """

    family: ModelFamily
    trouble: float = 0.0
    failing_calls: set[int] = field(default_factory=set)
    _calls: int = 0

    def __call__(self, call: Call) -> Answer:
        self._calls += 1
        if self._calls - 1 in self.failing_calls:
            return EndpointError("HTTP 500: the worker is gone")
        rng = random.Random(f"{call.seed}/{call.opened_with}")
        kind = rng.choice(["cut", "ending", "repeat", "short", "overflow"])
        trouble = kind if rng.random() < self.trouble else None
        if trouble == "overflow":
            return ContextOverflowError("the prompt is too long")
        if self._is("judge", call):
            words = self.family.judge_no if trouble else self.family.judge_yes
            return words[0] + "."
        text = self._text(call, short=trouble == "short")
        if trouble == "repeat":
            text = f"{text} {text}"
        if trouble == "ending":
            text += " and"
        return said(text, "length" if trouble == "cut" else "stop")

    def _text(self, call: Call, short: bool) -> str:
        if call.opened_with.startswith(self.family.instruction_label.format(n=1)):
            subject = (
                f"关于{call.seed}的长篇报告"
                if self._chinese
                else f"Write a report on subject {call.seed}."
            )
            return "" if short else subject
        words = 12 + call.seed % 30
        if self._is("extend", call):
            draft = call.user.rpartition("：\n" if self._chinese else ":\n")[2]
            words = 3 if short else 3 * count_words(draft) // 2
        return story(self.family, words, start=call.seed)

    def _is(self, task: str, call: Call) -> bool:
        return call.user.startswith(self.family.prompt(task).partition("{")[0])

    @property
    def _chinese(self) -> bool:
        return self.family.language == "zh"


def story(family: ModelFamily, words: int, start: int) -> str:
    """Some more than `words` words in the family's language, in sentences that never repeat."""
    template = (
        "第{}句话讲新的事情。" if family.language == "zh" else "Sentence {} tells a new thing."
    )
    sentences = [
        template.format(f"{start}x{number}")
        for number in range(words // count_words(template.format(0)) + 1)
    ]
    return "\n\n".join(sentences)


@dataclass(frozen=True)
class Turn:
    """What the server does with one request."""

    status: int = 200
    text: str = "Done."  # of the completion, when the status is 200 and no body is given
    finish_reason: str = "stop"
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang_up: str = ""  # "before" or "within" the reply

    def payload(self) -> bytes:
        body = self.body
        if body is None:
            body = completion(self) if self.status == 200 else error(self.status)
        return body if isinstance(body, bytes) else json.dumps(body).encode()


def completion(turn: Turn) -> dict[str, Any]:
    message = {"role": "assistant", "content": turn.text}
    usage = {"prompt_tokens": 7, "completion_tokens": count_words(turn.text), "total_tokens": 0}
    choice = {"index": 0, "message": message, "finish_reason": turn.finish_reason}
    kind = {"id": "1", "object": "chat.completion", "created": 0, "model": "fake"}
    return {**kind, "choices": [choice], "usage": usage}


def error(code: int, message: str = "scripted") -> dict[str, Any]:
    """A refusal as FastChat writes it."""
    return {"object": "error", "message": message, "code": code}


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]  # by lower-case name
    body: dict[str, Any]


class FakeServer:
    """An OpenAI-compatible server that plays a script, then answers; or computes every turn."""

    def __init__(self, script: Iterable[Turn] | Callable[[Request], Turn] = (), port: int = 0):
        turns = None if callable(script) else deque(script)
        self.requests: list[Request] = []
        lock = threading.Lock()

        def turn_of(request: Request) -> Turn:
            with lock:
                self.requests.append(request)
                if turns is not None:
                    return turns.popleft() if turns else Turn()
            return script(request)

        self._server = _Server(("127.0.0.1", port), _handler(turn_of))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client went away


def _handler(turn_of: Callable[[Request], Turn]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            turn = turn_of(Request(self.path, headers, body))
            time.sleep(turn.delay_s)
            payload = turn.payload()
            self.close_connection = bool(turn.hang_up)
            if turn.hang_up == "before":
                return
            self.send_response(turn.status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(payload))}
            for name, value in {**headers, **turn.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload[: len(payload) // 2] if turn.hang_up else payload)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
