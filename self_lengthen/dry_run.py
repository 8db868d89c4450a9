"""What a run would do on this node, as command lines in their order; nothing is started or written.

On several nodes the ports and the key file are drawn when it starts: PORT and KEY stand for them.
"""

import shlex
from collections.abc import Callable

from self_lengthen.options import Plan
from self_lengthen.run import STEPS, Pipeline
from self_lengthen.runfolder import BASE_MODEL
from self_lengthen.serving.key import KEY_FILES
from self_lengthen.serving.plan import ServerOptions, Service, plan_server
from self_lengthen.serving.share import adapters, server_command, server_logs


def dry_run(pipeline: Pipeline, say: Callable[[str], None] = print) -> None:
    """Every command line of the run, in order."""
    plan = pipeline.plan
    base_url = "http://HOST:PORT/v1"
    for iteration in range(1, plan.options["max_iter"] + 1):
        models = [BASE_MODEL, *adapters(pipeline.run, iteration)]
        say(f"# iteration {iteration}: serve {', '.join(models)}")
        more = [f"--{name}={value}" for name, value in cluster_options(plan).items()]
        say(shlex.join(server_command(plan, iteration, *more)))
        for service in planned_services(pipeline, iteration):
            say(f"  {service}")
        for step in STEPS if plan.node.leads else ():
            say(shlex.join(pipeline.step_command(iteration, step, base_url)))
        together = "side by side" if plan.side_by_side else "one after the other"
        say(f"# iteration {iteration}: fine-tune both roles {together}")
        for job in pipeline.training_jobs(iteration):
            say(str(job))


def cluster_options(plan: Plan) -> dict[str, str]:
    """What run_server.sh gets on one of several nodes."""
    node = plan.node
    if node.alone:
        return {}
    key_file = str(plan.results / KEY_FILES.replace("*", "KEY"))
    controller = {} if node.leads else {"controller": f"http://{node.master_addr}:PORT"}
    return {"host": node.address, "api_key_file": key_file, **controller}


def planned_services(pipeline: Pipeline, iteration: int) -> list[Service]:
    """What run_server.sh will start. Adapters that are not trained yet are left out of the rank."""
    options = pipeline.options
    server = ServerOptions(
        base_model=options["base_model"],
        adapters=adapters(pipeline.run, iteration),
        groups=pipeline.plan.groups,
        max_model_len=options["max_model_len"],
        log_dir=server_logs(pipeline.plan, iteration),
        port=options["port"],
        controller_port=options["controller_port"],
        worker_port=options["worker_port"],
        trust_remote_code=options["trust_remote_code"],
        seed=options["seed"],
        lora_rank=options["lora_rank"],
        **cluster_options(pipeline.plan),
    )
    return plan_server(server, BASE_MODEL).services
