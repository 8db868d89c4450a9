"""Requests a second through what stands in front of the engines: client, API servers, controller.

    python bench/frontend.py [--workers=1,8,64] [--api_servers=1,2] [--seconds=5] [--in_flight=256]

Simulated workers (bench/simulated.py) behind the real controller, API servers and client; and the
client alone, against a server that answers at once. A row gives the requests a second of all
processes together on this machine's cores, and the CPU milliseconds of each kind of process for one
request: 1000 divided by it is what one such process can do on a core of its own. Prints Markdown.
"""

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import uvloop
from simulated import HOST, json_server
from stack import cpu_seconds

from self_lengthen.cli import Parser, at_least
from self_lengthen.endpoint import Endpoint, Sampling
from self_lengthen.errors import RunError, main_exit
from self_lengthen.owned import Owned
from self_lengthen.ports import free_ports
from self_lengthen.runfolder import BASE_MODEL

READY_S = 60.0
DELAY_S = 0.05  # of a simulated worker: about one step of prefill
SAMPLING = Sampling(max_tokens=1)
COLUMNS = ("client", "API server", "controller", "workers")


@dataclass
class Front:
    """The running processes in front of the engines, by their column."""

    urls: list[str]  # of the API servers
    processes: dict[str, list[int]]  # column -> process ids

    def cpu_seconds(self) -> dict[str, float]:
        """So far, by column."""
        return {
            name: sum(cpu_seconds(psutil.Process(pid)) for pid in pids)
            for name, pids in self.processes.items()
        }


def child_of(guard: int) -> int:
    """The process that a guard has started."""
    children = Path(f"/proc/{guard}/task/{guard}/children")
    wait_until(children.read_text, "a process")
    return int(children.read_text().split()[0])


@contextmanager
def front(workers: int, api_servers: int) -> Iterator[Front]:
    """Controller, API servers and simulated workers until the end of the block."""
    port, *ports = free_ports(HOST, 1 + api_servers)
    controller = f"http://{HOST}:{port}"
    python = [sys.executable, "-m"]
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(name: str, command: list[str]) -> int:
            env = {"LOGDIR": str(logs), "PYTHONUNBUFFERED": "1"}
            owned = Owned(name, command, logs / f"{name}.log", env, grace_s=5)
            return child_of(stack.enter_context(owned).pid)

        pids = {column: [] for column in COLUMNS[1:]}
        pids["controller"].append(
            start("controller", [*python, "self_lengthen.serving.controller", f"--port={port}"])
        )
        wait_until(lambda: answers(f"{controller}/test_connection"), "the controller")
        for number, api_port in enumerate(ports):
            command = [*python, "self_lengthen.serving.api_server", f"--port={api_port}"]
            pids["API server"].append(
                start(f"api_{number}", [*command, f"--controller={controller}"])
            )
        simulated = str(Path(__file__).with_name("simulated.py"))
        command = [sys.executable, simulated, f"--controller={controller}", f"--workers={workers}"]
        pids["workers"].append(start("workers", [*command, f"--delay_s={DELAY_S}"]))
        wait_until(lambda: "ready" in (logs / "workers.log").read_text(), "the workers")
        urls = [f"http://{HOST}:{api_port}/v1" for api_port in ports]
        for url in urls:
            wait_until(lambda url=url: answers(f"{url}/models"), "the API server")
        yield Front(urls, pids)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def wait_until(happens, what: str) -> None:
    deadline = time.monotonic() + READY_S
    while not happens():
        if time.monotonic() > deadline:
            raise RunError(f"{what} did not answer within {READY_S:.0f} s")
        time.sleep(0.2)


@dataclass
class Asked:
    """By one client: requests in the time measured, all requests, CPU seconds for all."""

    timed: int
    all: int
    cpu_s: float


async def ask_for(url: str, in_flight: int, seconds: float) -> Asked:
    """Ask one server as the steps do."""
    async with Endpoint(url) as endpoint:
        started = time.process_time()
        await asyncio.gather(*(ask(endpoint, 0) for _ in range(in_flight)))  # connections
        end = time.monotonic() + seconds
        timed = sum(await asyncio.gather(*(ask(endpoint, end) for _ in range(in_flight))))
        return Asked(timed, timed + in_flight, time.process_time() - started)


async def ask(endpoint: Endpoint, end: float) -> int:
    done = 0
    while done == 0 or time.monotonic() < end:
        await endpoint.chat(BASE_MODEL, "Write a long story.", SAMPLING, seed=done)
        done += 1
    return done


def client(url: str, in_flight: int, seconds: float) -> Asked:
    return uvloop.run(ask_for(url, in_flight, seconds))


def through_all(workers: int, api_servers: int, in_flight: int, seconds: float) -> list[str]:
    """One row: a client process for each API server."""
    context = multiprocessing.get_context("spawn")
    each = in_flight // api_servers
    with front(workers, api_servers) as stack, ProcessPoolExecutor(api_servers, context) as clients:
        before = stack.cpu_seconds()
        asking = [clients.submit(client, url, each, seconds) for url in stack.urls]
        asked = [future.result() for future in asking]
        spent = {name: s - before[name] for name, s in stack.cpu_seconds().items()}
    spent["client"] = sum(client.cpu_s for client in asked)
    requests = sum(client.all for client in asked)
    milliseconds = [f"{1000 * spent[name] / requests:.2f}" for name in COLUMNS]
    rate = sum(client.timed for client in asked) / seconds
    return [str(workers), str(api_servers), f"{rate:.0f}", *milliseconds]


async def client_alone(in_flight: int, seconds: float) -> list[str]:
    """The client against a server in another process that answers at once."""
    context = multiprocessing.get_context("spawn")
    addresses = context.SimpleQueue()
    server = context.Process(target=canned_server, args=(addresses,), daemon=True)
    server.start()
    try:
        asked = await ask_for(f"{addresses.get()}/v1", in_flight, seconds)
    finally:
        server.terminate()
        server.join()
    rate, milliseconds = asked.timed / seconds, 1000 * asked.cpu_s / asked.all
    return ["–", "–", f"{rate:.0f}", f"{milliseconds:.2f}", "–", "–", "–"]


def canned_server(addresses) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "One"}}
    choice["finish_reason"] = "stop"
    usage = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": BASE_MODEL}
    body = json.dumps({**head, "choices": [choice], "usage": usage}).encode()

    async def answer(path: str, _: bytes) -> bytes:
        return body

    async def serve() -> None:
        server, address = await json_server(answer)
        addresses.put(address)
        await server.serve_forever()

    uvloop.run(serve())


def numbers(text: str) -> list[int]:
    return [at_least(1)(part) for part in text.split(",")]


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=numbers, default=[1, 8, 64])
    parser.add_argument("--api_servers", type=numbers, default=[1, 2])
    parser.add_argument("--in_flight", type=at_least(1), default=256)
    parser.add_argument("--seconds", type=at_least(0.1, float), default=5.0, help="of each row")
    args = parser.parse_args()
    ms = " | ".join(f"{name}, ms" for name in COLUMNS)
    print(f"| workers | API servers | requests/s | {ms} |\n|{'---:|' * 7}")
    print("|", " | ".join(uvloop.run(client_alone(args.in_flight, args.seconds))), "|")
    for api_servers in args.api_servers:
        for workers in args.workers:
            row = through_all(workers, api_servers, args.in_flight, args.seconds)
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main_exit("bench/frontend.py", main)
