"""LLaMA-Factory's training of one configuration file, with what we add to it.

    python -m self_lengthen.training.trainer FILE.yaml

`llamafactory-cli train FILE.yaml` learns the same, slower (padding.py). Reads LLaMA-Factory's own
variables: with FORCE_TORCHRUN=1 it becomes torchrun, NPROC_PER_NODE processes on each of NNODES
nodes, of which this is NODE_RANK; they meet at MASTER_ADDR:MASTER_PORT.
"""

import os
import sys
from collections.abc import Mapping

TRAINER = "self_lengthen.training.trainer"
TORCHRUN = {  # its option: LLaMA-Factory's variable, and what that is by default
    "nnodes": ("NNODES", "1"),
    "node_rank": ("NODE_RANK", "0"),
    "nproc_per_node": ("NPROC_PER_NODE", "1"),
    "master_addr": ("MASTER_ADDR", "127.0.0.1"),
    "master_port": ("MASTER_PORT", "29500"),
}


def torchrun(environ: Mapping[str, str], file: str) -> list[str]:
    """Its command line for the training of `file`; empty where this process is to train itself."""
    if environ.get("FORCE_TORCHRUN") != "1" or "LOCAL_RANK" in environ:
        return []
    options = [f"--{name}={environ.get(*variable)}" for name, variable in TORCHRUN.items()]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", TRAINER, file]


def main() -> None:
    if command := torchrun(os.environ, sys.argv[1]):
        os.execv(command[0], command)
    from llamafactory.train.tuner import run_exp

    from self_lengthen.training.padding import WithoutPaddingMask

    run_exp(callbacks=[WithoutPaddingMask()])


if __name__ == "__main__":
    main()
