"""One node's share of the server, in the foreground: started, watched, stopped together.

    bash run_server.sh --base_model=DIR [--adapter=NAME=DIR ...] [--port=8000]

Starts a FastChat controller, an API server and a vLLM worker per GPU group; their logs go to
--log_dir. Says `ready` (and writes --ready_file) only when the base model and every adapter have
answered on every worker and through the API server. Until then it fails with the reason and the
log's path when a process ends or the deadline passes; from then on it restarts what ends
(supervisor.py). Nothing that it started outlives it.

On several nodes: --host and --api_key_file on all, --controller=URL of the first on the others.
"""

import argparse
import contextlib
import logging
import signal
import time
from pathlib import Path
from typing import NoReturn

import httpx

from self_lengthen.cli import Parser, at_least
from self_lengthen.devices import default_tensor_parallel, visible_gpus, worker_groups
from self_lengthen.errors import RunError, UserError, main_exit
from self_lengthen.files import write_json
from self_lengthen.model import local_base_model, read_base_model, served_context
from self_lengthen.owned import Owned
from self_lengthen.runfolder import BASE_MODEL
from self_lengthen.serving.key import key_headers, read_key
from self_lengthen.serving.plan import ServerOptions, ServerPlan, Service, plan_server
from self_lengthen.serving.supervisor import Supervised, look_after

STARTUP_TIMEOUT_S = 1800  # a 70B model from a slow disk
ASK_TIMEOUT_S = 120
POLL_S = 0.5

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="run_server.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--base_model", required=True, help="folder, or name on the hub")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="LoRA adapter; repeatable",
    )
    count = at_least(0)
    parser.add_argument(
        "--tensor_parallel", type=count, default=0, help="GPUs a worker; 0: by memory"
    )
    parser.add_argument("--max_model_len", type=count, default=0, help="tokens; 0: up to 32768")
    parser.add_argument("--max_num_seqs", type=count, default=0, help="in one batch; 0: by device")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=count, default=0, help="of the API server; 0: a free one")
    parser.add_argument("--controller_port", type=count, default=0, help="0: a free one")
    parser.add_argument("--controller", default="", help="URL of another node's, to join it")
    parser.add_argument("--api_key_file", default="", help="holds the key that requests must have")
    parser.add_argument("--worker_port", type=count, default=0, help="of the first; 0: free ones")
    parser.add_argument("--log_dir", type=Path, default=Path("logs"), help="one file a process")
    parser.add_argument("--ready_file", type=Path, help="written when all models answer")
    parser.add_argument("--startup_timeout_s", type=at_least(1, float), default=STARTUP_TIMEOUT_S)
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own code")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dry_run", action="store_true", help="print the command lines, start none"
    )
    return parser


def server_options(args: argparse.Namespace) -> ServerOptions:
    """Raises UserError for what cannot be served."""
    _refuse_open_doors(args)
    model = read_base_model(args.base_model)
    gpus = visible_gpus()
    size = args.tensor_parallel or default_tensor_parallel(
        gpus, model.weight_bytes, model.attention_heads
    )
    adapters = {}
    for adapter in args.adapter:
        name, separator, folder = adapter.partition("=")
        if not (name and separator and folder):
            raise UserError(f"--adapter={adapter}: is not NAME=DIR")
        adapters[name] = folder
    return ServerOptions(
        base_model=model.path if args.dry_run else local_base_model(args.base_model),
        adapters=adapters,
        groups=worker_groups(gpus, size, model.attention_heads),
        max_model_len=served_context(args.max_model_len, model),
        max_num_seqs=args.max_num_seqs,
        log_dir=args.log_dir.resolve(),
        host=args.host,
        port=args.port,
        controller_port=args.controller_port,
        controller=args.controller,
        api_key_file=args.api_key_file,
        worker_port=args.worker_port,
        trust_remote_code=args.trust_remote_code,
        seed=args.seed,
    )


def _refuse_open_doors(args: argparse.Namespace) -> None:
    if args.controller and not args.controller.startswith("http://"):
        raise UserError(f"--controller={args.controller}: is not http://ADDRESS:PORT")
    loopback = args.host == "localhost" or args.host.startswith("127.")
    if not loopback and not read_key(args.api_key_file):
        raise UserError(
            f"--host={args.host}: others could reach the server; give --api_key_file=FILE with a "
            "long random word in it, which requests must bring as a bearer token"
        )


class Server:
    """The running processes of a plan."""

    def __init__(
        self, plan: ServerPlan, log_dir: Path, key: str, stack: contextlib.ExitStack
    ) -> None:
        self.plan, self.log_dir, self._stack = plan, log_dir, stack
        self.processes = [self._supervised(service) for service in plan.services]
        client = httpx.Client(timeout=ASK_TIMEOUT_S, trust_env=False, headers=key_headers(key))
        self._client = stack.enter_context(client)

    def _supervised(self, service: Service) -> Supervised:
        def start() -> Owned:
            log_file = self.log_dir / f"{service.name}.log"
            owned = Owned(service.name, service.command, log_file, service.env, grace_s=10)
            return self._stack.enter_context(owned)

        return Supervised(start(), start, spare=service in self.plan.workers)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Raises RunError with the reason and the log's path."""
        deadline = time.monotonic() + timeout_s
        for worker in self.plan.workers:
            for model in self.plan.models:
                self._wait(worker, model, deadline)
        for model in self.plan.models:
            self._wait(self.plan.api, model, deadline)

    def _wait(self, service: Service, model: str, deadline: float) -> None:
        error = "it has not answered"
        while time.monotonic() < deadline:
            self.check()
            try:
                answer = self._ask(service, model)
            except httpx.HTTPError as failure:
                error = f"{type(failure).__name__}: {failure}"
            else:
                if answer.is_success and not answer.json().get("error_code"):
                    return
                error = f"HTTP {answer.status_code}: {answer.text[:300]}"
            time.sleep(POLL_S)
        process = next(p.process for p in self.processes if p.process.name == service.name)
        raise RunError(
            f"{service.name} did not serve {model} before the deadline ({error}); "
            f"log: {process.log}"
        )

    def _ask(self, service: Service, model: str) -> httpx.Response:
        """One token from `model`."""
        request = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
        api = service is self.plan.api
        route = "/v1/chat/completions" if api else "/worker_generate"
        return self._client.post(service.url + route, json=request)

    def keep_alive(self) -> None:
        """Restarts what has ended. Raises RunError when that is hopeless."""
        look_after(self.processes)

    def check(self) -> None:
        """Raises RunError when a process has ended."""
        for process in (supervised.process for supervised in self.processes):
            if (status := process.poll()) is not None:
                raise RunError(
                    f"{process.name} ended with status {status}; log: {process.log}\n"
                    f"{process.log_tail()}"
                )


def main() -> None:
    args = parser().parse_args()
    options = server_options(args)
    plan = plan_server(options, BASE_MODEL)
    if args.dry_run:
        print(*plan.services, sep="\n")
        return
    _make_folder("--log_dir", options.log_dir)
    if args.ready_file:
        _make_folder("--ready_file", args.ready_file.resolve().parent)
    signal.signal(signal.SIGTERM, _stop)
    with contextlib.ExitStack() as stack:
        server = Server(plan, options.log_dir, read_key(options.api_key_file), stack)
        server.wait_until_ready(args.startup_timeout_s)
        url = f"{plan.api.url}/v1"
        print(f"ready: {url} serves {', '.join(plan.models)}", flush=True)
        if args.ready_file:
            write_json(args.ready_file, {"base_url": url, "models": plan.models})
        while True:
            server.keep_alive()
            time.sleep(POLL_S)


def _make_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{option}: {folder} cannot be made ({error.strerror}); give another folder"
        ) from error


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    main_exit("run_server.sh", main)
