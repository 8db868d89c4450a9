"""What benchmarks of the engine share: the real server, the engine alone, an adapter, a client."""

import multiprocessing
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from self_lengthen.endpoint import Endpoint, Reply
from self_lengthen.errors import RunError
from self_lengthen.family import REPO_ROOT
from self_lengthen.files import read_json
from self_lengthen.owned import Owned
from self_lengthen.serving.plan import CPU_SEQUENCES, GPU_SEQUENCES, cpu_env

MODEL = REPO_ROOT / "demo" / "models" / "llama"
CONTEXT_TOKENS = 4096
ADAPTER = "adapter"
RANK = 8  # of the adapter
READY_S = 300.0
KINDS = {  # by a word of the command line; vLLM gives its process that title
    "VLLM::EngineCore": "engine",
    "self_lengthen.serving.worker": "worker",
    "self_lengthen.serving.api_server": "API server",
}


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process so far."""
    times = process.cpu_times()
    return times.user + times.system


@dataclass(frozen=True)
class Served:
    """A running server of MODEL."""

    base_url: str
    pid: int

    def cpu_seconds(self) -> dict[str, float]:
        """So far, by kind of its processes."""
        spent = dict.fromkeys([*KINDS.values(), "others"], 0.0)
        for process in psutil.Process(self.pid).children(recursive=True):
            kind = next((KINDS[word] for word in process.cmdline() if word in KINDS), "others")
            spent[kind] += cpu_seconds(process)
        return spent


@contextmanager
def served(adapters: dict[str, Path], **options: object) -> Iterator[Served]:
    """A server of MODEL and `adapters`, stopped at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        ready, log = Path(folder) / "ready.json", Path(folder) / "server.log"
        command = ["bash", str(REPO_ROOT / "run_server.sh"), f"--base_model={MODEL}"]
        command += [f"--adapter={name}={path}" for name, path in adapters.items()]
        command += [f"--{name}={value}" for name, value in options.items()]
        command += [f"--log_dir={folder}", f"--ready_file={ready}"]
        with Owned("server", command, log, grace_s=30) as server:
            deadline = time.monotonic() + READY_S
            while not ready.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RunError(f"the server is not ready:\n{server.log_tail()}")
                time.sleep(0.5)
            yield Served(read_json(ready)["base_url"], server.pid)


class AskingEndpoint(Endpoint):
    """An endpoint whose requests are changed by `change` before they are sent."""

    def __init__(self, base_url: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(base_url)
        self._change = change

    async def _ask(self, request: dict[str, Any]) -> Reply:
        return await super()._ask(self._change(request))


def offline_engine(adapter: str, *, cpu: bool, **changes: object) -> tuple[Any, Any]:
    """vLLM's LLM of MODEL with our worker's settings but for `changes`; the adapter's LoRARequest.

    `adapter`: its folder, or nothing; then there is no request either.
    """
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    from self_lengthen.serving.worker import cpu_settings, lora_limits

    worker = Namespace(cpu=cpu, max_model_len=CONTEXT_TOKENS, max_lora_rank=RANK)
    worker.adapter = [adapter] if adapter else []
    settings = {**cpu_settings(worker), **lora_limits(worker), **changes}
    sequences = CPU_SEQUENCES if cpu else GPU_SEQUENCES
    llm = LLM(str(MODEL), max_model_len=CONTEXT_TOKENS, max_num_seqs=sequences, **settings)
    return llm, LoRARequest(ADAPTER, 1, adapter) if adapter else None


def in_a_process(measure: Callable[..., Any], *args: object, cpu: bool) -> Any:
    """What `measure` returns, from a process for one engine, which is gone when that ends."""
    os.environ.update({"VLLM_LOGGING_LEVEL": "WARNING", **(cpu_env() if cpu else {})})
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(measure, *args).result()


def make_adapter(folder: Path) -> Path:
    """A LoRA adapter on all linear layers of MODEL, with small random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder
