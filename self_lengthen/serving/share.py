"""A node's share of the server in one iteration: run_server.sh, started and ready.

The base model and the adapters of the iteration before; on several nodes with the node's address,
an API key, and the controller of rank 0.
"""

import time
from collections.abc import Callable
from pathlib import Path

from self_lengthen.errors import RunError
from self_lengthen.files import read_json
from self_lengthen.options import REPO_ROOT, Plan
from self_lengthen.owned import Owned
from self_lengthen.runfolder import EXTENDER_SFT, GENERATOR_SFT, RunFolder, adapter_name

POLL_S = 0.3
READY_GRACE_S = 60  # the server itself gives up before, and says why


def adapters(run: RunFolder, iteration: int) -> dict[str, str]:
    """Served name -> folder of the adapters that play the roles in `iteration`."""
    if iteration == 1:
        return {}
    roles = {"generator": GENERATOR_SFT, "extender": EXTENDER_SFT}
    before = iteration - 1
    return {
        adapter_name(role, before): str(run.adapter(before, folder))
        for role, folder in roles.items()
    }


def server_logs(plan: Plan, iteration: int) -> Path:
    name = "server" if plan.node.leads else f"server-rank{plan.node.rank}"
    return (plan.logs or RunFolder(plan.results).logs(iteration)) / name


def server_command(plan: Plan, iteration: int, *cluster_options: str) -> list[str]:
    """run_server.sh of this iteration on this node; `cluster_options` are those of many nodes."""
    options, logs = plan.options, server_logs(plan, iteration)
    command = ["bash", str(REPO_ROOT / "run_server.sh"), f"--base_model={options['base_model']}"]
    served = adapters(RunFolder(plan.results), iteration)
    command += [f"--adapter={name}={path}" for name, path in served.items()]
    for name in ("tensor_parallel", "max_model_len", "port", "controller_port", "worker_port"):
        if options[name]:
            command.append(f"--{name}={options[name]}")
    if options["trust_remote_code"]:
        command.append("--trust_remote_code")
    command += [f"--seed={options['seed']}", f"--log_dir={logs}"]
    command.append(f"--startup_timeout_s={options['server_timeout_s']:g}")
    command.append(f"--ready_file={logs / 'ready.json'}")
    return [*command, *cluster_options]


def start_server(
    plan: Plan, iteration: int, check: Callable[[], None], *cluster_options: str
) -> tuple[Owned, str]:
    """The running server and its base URL. Raises RunError when it is not ready in time.

    `check` is called all the while and may raise.
    """
    logs = server_logs(plan, iteration)
    ready = logs / "ready.json"
    ready.unlink(missing_ok=True)
    env = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.id for gpu in plan.gpus)}
    command = server_command(plan, iteration, *cluster_options)
    server = Owned("server", command, logs / "server.log", env, grace_s=30)
    deadline = time.monotonic() + plan.options["server_timeout_s"] + READY_GRACE_S
    try:
        while not ready.exists():
            still_running(server)
            check()
            if time.monotonic() > deadline:
                raise RunError(f"the server was not ready before the deadline; log: {server.log}")
            time.sleep(POLL_S)
    except BaseException:
        server.stop()
        raise
    return server, read_json(ready)["base_url"]


def still_running(server: Owned) -> None:
    """Raises RunError when it is not."""
    if (status := server.poll()) is not None:
        raise RunError(
            f"the server ended with status {status}; log: {server.log}\n{server.log_tail()}"
        )
