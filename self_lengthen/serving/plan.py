"""The server of one node as command lines: a controller, a worker per GPU group, an API server.

A node that joins another's controller starts none of its own.

Pure: given options and GPUs it says what would run. `server.py` runs it, `--dry_run` prints it.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from self_lengthen.cli import command_line
from self_lengthen.errors import UserError
from self_lengthen.files import read_json
from self_lengthen.ports import choose_ports

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks
CPU_KV_CACHE_GIB = 2
CPU_SEQUENCES, GPU_SEQUENCES = 128, 256  # in one batch of a worker


@dataclass(frozen=True)
class Service:
    """One process of the server."""

    name: str
    command: list[str]
    url: str
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return command_line(self.command, self.env)


@dataclass(frozen=True)
class ServerOptions:
    base_model: str
    adapters: dict[str, str]  # served name -> folder
    groups: list[list[str]]  # GPU ids of each worker; an empty group is the CPU
    max_model_len: int
    log_dir: Path
    max_num_seqs: int = 0  # 0: by device
    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    controller_port: int = 0
    controller: str = ""  # URL of another node's, to join; "": start one
    worker_port: int = 0  # of the first worker; the others follow
    api_key_file: str = ""  # "": no key, for loopback
    trust_remote_code: bool = False
    seed: int = 0
    lora_rank: int = 0  # 0: what the adapters' folders say


@dataclass(frozen=True)
class ServerPlan:
    controller: Service | None  # None: another node's
    workers: list[Service]
    api: Service
    models: list[str]

    @property
    def services(self) -> list[Service]:
        controllers = [self.controller] if self.controller else []
        return [*controllers, self.api, *self.workers]


def lora_rank(adapter: str) -> int:
    """The rank of an adapter's folder. Raises UserError when it is none or over vLLM's limit."""
    file = Path(adapter) / "adapter_config.json"
    try:
        rank = int(read_json(file)["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--adapter: {adapter} has no adapter_config.json with a rank r; is it a LoRA adapter?"
        ) from error
    if rank > LORA_RANKS[-1]:
        raise UserError(f"--adapter: {adapter} has rank {rank}, vLLM serves up to {LORA_RANKS[-1]}")
    return rank


def max_lora_rank(options: ServerOptions) -> int:
    """The smallest limit of vLLM's that admits all adapters; it costs memory and time."""
    highest = options.lora_rank or max(lora_rank(path) for path in options.adapters.values())
    return next(rank for rank in LORA_RANKS if rank >= highest)


def plan_server(options: ServerOptions, base_name: str) -> ServerPlan:
    """Raises UserError for a port that is taken or an adapter that cannot be served."""
    if base_name in options.adapters:
        raise UserError(f"--adapter={base_name}=...: {base_name} is the name of the base model")
    host = options.host
    controller_port, api_port, worker_ports = choose_ports(
        *(host, options.controller_port, options.port, options.worker_port),
        workers=len(options.groups),
    )
    env = _common_env(options.log_dir)
    key = [f"--api_key_file={options.api_key_file}"] if options.api_key_file else []

    def front(name: str, port: int, *more: str) -> Service:
        command = [sys.executable, "-m", f"self_lengthen.serving.{name}", f"--host={host}"]
        command += [f"--port={port}", *more, *key]
        return Service(name, command, f"http://{host}:{port}", env)

    controller = None if options.controller else front("controller", controller_port)
    controller_url = controller.url if controller else options.controller
    api = front("api_server", api_port, f"--controller={controller_url}")
    shared = [f"--base_model={options.base_model}", f"--base_name={base_name}"]
    shared += [f"--adapter={name}={path}" for name, path in options.adapters.items()]
    if options.adapters:
        shared.append(f"--max_lora_rank={max_lora_rank(options)}")
    shared += [f"--controller={controller_url}", f"--max_model_len={options.max_model_len}", *key]
    if options.trust_remote_code:
        shared.append("--trust_remote_code")
    workers = [
        _worker(options, shared, env, f"worker_{number}", port, group)
        for number, (port, group) in enumerate(zip(worker_ports, options.groups, strict=True))
    ]
    return ServerPlan(controller, workers, api, [base_name, *options.adapters])


def _worker(
    options: ServerOptions,
    shared: list[str],
    env: dict[str, str],
    name: str,
    port: int,
    group: list[str],
) -> Service:
    sequences = options.max_num_seqs or (GPU_SEQUENCES if group else CPU_SEQUENCES)
    command = [sys.executable, "-m", "self_lengthen.serving.worker", *shared]
    command += [f"--host={options.host}", f"--port={port}", f"--max_num_seqs={sequences}"]
    command += [f"--tensor_parallel={max(1, len(group))}", f"--seed={options.seed}"]
    if group:
        env = {**env, "CUDA_VISIBLE_DEVICES": ",".join(group)}
    else:
        command.append("--cpu")
        env = {**env, **cpu_env()}
    return Service(name, command, f"http://{options.host}:{port}", env)


def cpu_env() -> dict[str, str]:
    """The engine computes in its own process.

    vLLM would start another one for that, and both spin while the other works: on 2 cores the start
    takes half as long again, and 80 texts at once get 0.7 of the tokens a second (2026-11-26).
    """
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the platform overrules the executor "uni"
        "LD_PRELOAD": preloaded(os.environ.get("LD_PRELOAD", "")),
    }


def preloaded(given: str) -> str:
    """What vLLM preloads into a process that computes on the CPU, where the packages bring it.

    Torch's OpenMP, without which bound threads share one core, and a faster allocator.
    """
    packages = Path(importlib.util.find_spec("torch").origin).parent.parent
    libraries = ("torch.libs/libgomp*.so*", "torch/lib/libgomp*.so*", "vllm/libs/libtcmalloc*.so*")
    found = [str(file) for library in libraries for file in sorted(packages.glob(library))[:1]]
    return ":".join(filter(None, [given, *found]))


def _common_env(log_dir: Path) -> dict[str, str]:
    return {
        "LOGDIR": str(log_dir),  # FastChat writes its log files here, else into the working folder
        "FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "5",  # seconds; FastChat: 45
        "FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION": "20",  # FastChat: 90
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }
