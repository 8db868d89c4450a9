"""What an engine is doing: for the controller, and for whoever decides how much to ask of it.

`EngineLoad` takes the place of a vLLM stat logger: `AsyncLLM(stat_loggers=[load.attach])`.
`summed` makes one `Load` of the status of all workers.
"""

from collections.abc import Sequence
from typing import Any

from self_lengthen.pace import Load

CPU_NEARLY_FREE = 4  # at 0.74 of the speed of one alone, 8 at 0.58 (2 cores, docs/performance.md)


class EngineLoad:
    """The state of one worker's engine after its last step."""

    def __init__(self) -> None:
        self.running = self.waiting = self.capacity = self.nearly_free = self.kv_tokens = 0
        self.kv_usage = 0.0

    def attach(self, vllm_config: Any, engine_index: int = 0) -> "EngineLoad":
        """As vLLM makes its loggers."""
        self._config = vllm_config
        self.capacity = self.nearly_free = vllm_config.scheduler_config.max_num_seqs
        if vllm_config.device_config.device_type == "cpu":
            self.nearly_free = min(CPU_NEARLY_FREE, self.capacity)
        return self

    def log_engine_initialized(self) -> None:
        cache = self._config.cache_config  # its size is known by now
        self.kv_tokens = (cache.num_gpu_blocks or 0) * cache.block_size

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            self.running = scheduler_stats.num_running_reqs
            self.waiting = scheduler_stats.num_waiting_reqs
            self.kv_usage = scheduler_stats.kv_cache_usage

    def log(self) -> None:
        """vLLM's call; nobody reads a log of this."""

    def record_sleep_state(self, *_: Any) -> None:
        """vLLM's call; our engines do not sleep."""

    def status(self, requests: int) -> dict[str, Any]:
        """`requests` is what the worker has in hand: after the last of them no step comes."""
        return {
            "running": min(self.running, requests),
            "waiting": min(self.waiting, requests),
            "max_num_seqs": self.capacity,
            "nearly_free": self.nearly_free,
            "kv_tokens": self.kv_tokens,
            "kv_usage": round(self.kv_usage, 3) if requests else 0.0,
        }


def summed(statuses: Sequence[dict[str, Any]]) -> Load:
    """Of all workers that have answered."""
    idle = [_idle_share(status) for status in statuses]
    names = ("max_num_seqs", "nearly_free", "running", "waiting")
    totals = [sum(status[name] for status in statuses) for name in names]
    return Load(len(statuses), *totals, idle_share=sum(idle) / len(idle) if idle else 1.0)


def _idle_share(status: dict[str, Any]) -> float:
    if status["waiting"]:
        return 0.0  # its KV cache is full although its batch is not
    return 1 - min(1.0, status["running"] / status["max_num_seqs"])
