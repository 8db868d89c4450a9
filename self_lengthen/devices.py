"""Which accelerators this node may use, and how they are dealt out to workers."""

import importlib.metadata
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from self_lengthen.errors import UserError

WEIGHTS_SHARE = 0.6  # of a GPU's memory; the rest is for the KV cache and activations
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S = 60


@dataclass(frozen=True)
class Gpu:
    id: str  # as CUDA_VISIBLE_DEVICES spells it
    memory_mib: int  # 0 when unknown


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """GPUs of this node that CUDA_VISIBLE_DEVICES leaves, in its order.

    None without a driver, and none in an environment whose torch is built for the CPU.

    Raises UserError when CUDA_VISIBLE_DEVICES names a GPU that is not there.
    """
    if "+cpu" in importlib.metadata.version("torch"):
        return []
    try:
        query = subprocess.run(
            QUERY, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if query.returncode != 0:
        return []
    return select_gpus(query.stdout, environ.get("CUDA_VISIBLE_DEVICES"))


def select_gpus(listing: str, visible: str | None) -> list[Gpu]:
    """GPUs of nvidia-smi's `listing` (index, uuid, MiB a line) that `visible` names, None: all."""
    present: dict[str, Gpu] = {}
    for line in listing.splitlines():
        if line.strip():
            index, uuid, memory = (part.strip() for part in line.split(","))
            mib = int(memory) if memory.isdecimal() else 0  # [N/A] where it is the host's
            present[index], present[uuid] = Gpu(index, mib), Gpu(uuid, mib)
    if visible is None:
        return [gpu for name, gpu in present.items() if name.isdigit()]
    chosen = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        if name == "-1":
            break  # CUDA: this and all that follow are hidden
        if name not in present:
            raise UserError(f"CUDA_VISIBLE_DEVICES={visible}: there is no GPU {name} on this node")
        chosen.append(present[name])
    return chosen


def default_tensor_parallel(gpus: Sequence[Gpu], weight_bytes: int, attention_heads: int) -> int:
    """The smallest power of two of GPUs that holds the weights with room for the KV cache.

    1 where a GPU does not say how much memory it has.
    """
    size = 1
    room = WEIGHTS_SHARE * min((gpu.memory_mib for gpu in gpus), default=0) * 2**20
    if not room:
        return size
    while (
        weight_bytes / size > room and 2 * size <= len(gpus) and attention_heads % (2 * size) == 0
    ):
        size *= 2
    return size


def worker_groups(
    gpus: Sequence[Gpu], tensor_parallel: int, attention_heads: int
) -> list[list[str]]:
    """One group of GPU ids per worker; without GPUs one worker on the CPU (an empty group).

    Raises UserError when the GPUs, or the model's heads, cannot be dealt out in such groups.
    """
    if not gpus:
        if tensor_parallel > 1:
            raise UserError(f"--tensor_parallel={tensor_parallel}: this node has no visible GPU")
        return [[]]
    if tensor_parallel > len(gpus) or len(gpus) % tensor_parallel:
        raise UserError(
            f"--tensor_parallel={tensor_parallel}: {len(gpus)} visible GPUs cannot be dealt out in "
            "groups of that size; give a divisor"
        )
    if attention_heads % tensor_parallel:
        raise UserError(
            f"--tensor_parallel={tensor_parallel}: the model's {attention_heads} attention heads "
            f"cannot be dealt out to {tensor_parallel} GPUs; give a divisor"
        )
    ids = [gpu.id for gpu in gpus]
    return [ids[i : i + tensor_parallel] for i in range(0, len(ids), tensor_parallel)]
