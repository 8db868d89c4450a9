"""Workers without an engine: they register with a FastChat controller and answer after a delay.

    python bench/simulated.py --controller=URL [--workers=8] [--delay_s=0.05]

One process for all of them, on an HTTP server of few instructions, so that what is measured is what
stands in front of a worker. `json_server` serves any answers; the other benchmarks use it as well.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import uvloop

from self_lengthen.cli import Parser, at_least
from self_lengthen.errors import main_exit
from self_lengthen.runfolder import BASE_MODEL

HEART_BEAT_S = 5.0
HOST = "127.0.0.1"

Answer = Callable[[str, bytes], Awaitable[bytes]]  # (path, body) -> body


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as far as our own clients speak it: a body with a length, kept alive."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self._read = answer, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, separator, rest = self._read.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not separator or len(rest) < length:
            return
        self._read = rest[length:]
        self._task = asyncio.create_task(
            self._reply(head.split(b" ", 2)[1].decode(), rest[:length])
        )

    async def _reply(self, path: str, body: bytes) -> None:
        answer = await self._answer(path, body)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(answer), answer)
        )

    def connection_lost(self, _: Exception | None) -> None:
        if task := getattr(self, "_task", None):
            task.cancel()


async def json_server(answer: Answer) -> tuple[asyncio.Server, str]:
    """A server on a free port, and its address."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answer), HOST, 0, backlog=4096)
    return server, f"http://{HOST}:{server.sockets[0].getsockname()[1]}"


def worker_reply(text: str = "One", tokens: int = 1, finish_reason: str = "stop") -> dict[str, Any]:
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": finish_reason}


def status(running: int = 0) -> dict[str, Any]:
    return {"model_names": [BASE_MODEL], "speed": 1, "queue_length": running}


async def beat(controller: str, addresses: list[str]) -> None:
    """Register the workers and keep them known."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for address in addresses:
            registration = {"worker_name": address, "check_heart_beat": True}
            registration |= {"worker_status": status(), "multimodal": False}
            await client.post(f"{controller}/register_worker", json=registration)
        print("ready", flush=True)
        while True:
            await asyncio.sleep(HEART_BEAT_S)
            for address in addresses:
                signal = {"worker_name": address, "queue_length": 0}
                await client.post(f"{controller}/receive_heart_beat", json=signal)


async def serve(controller: str, workers: int, delay_s: float) -> None:
    reply, its_status = json.dumps(worker_reply()).encode(), json.dumps(status()).encode()

    async def answer(path: str, _: bytes) -> bytes:
        if path != "/worker_generate":
            return its_status
        await asyncio.sleep(delay_s)
        return reply

    servers = [await json_server(answer) for _ in range(workers)]
    await beat(controller, [address for _, address in servers])


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--controller", required=True)
    parser.add_argument("--workers", type=at_least(1), default=8)
    parser.add_argument("--delay_s", type=at_least(0, float), default=0.05)
    args = parser.parse_args()
    uvloop.run(serve(args.controller, args.workers, args.delay_s))


if __name__ == "__main__":
    main_exit("bench/simulated.py", main)
