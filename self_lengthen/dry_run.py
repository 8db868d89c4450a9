"""What a run would do, as command lines in their order; nothing is started or written."""

import shlex
from collections.abc import Callable

from self_lengthen.run import STEPS, Pipeline
from self_lengthen.runfolder import BASE_MODEL
from self_lengthen.serving.plan import ServerOptions, Service, plan_server
from self_lengthen.serving.share import adapters, server_command


def dry_run(pipeline: Pipeline, say: Callable[[str], None] = print) -> None:
    """Every command line of the run, in order."""
    plan = pipeline.plan
    base_url = "http://HOST:PORT/v1"
    for iteration in range(1, plan.options["max_iter"] + 1):
        models = [BASE_MODEL, *adapters(pipeline.run, iteration)]
        say(f"# iteration {iteration}: serve {', '.join(models)}")
        say(shlex.join(server_command(plan, iteration)))
        for service in planned_services(pipeline, iteration):
            say(f"  {service}")
        for step in STEPS:
            say(shlex.join(pipeline.step_command(iteration, step, base_url)))
        together = "side by side" if plan.side_by_side else "one after the other"
        say(f"# iteration {iteration}: fine-tune both roles {together}")
        for job in pipeline.training_jobs(iteration):
            say(str(job))


def planned_services(pipeline: Pipeline, iteration: int) -> list[Service]:
    """What run_server.sh will start. Adapters that are not trained yet are left out of the rank."""
    options = pipeline.options
    server = ServerOptions(
        base_model=options["base_model"],
        adapters=adapters(pipeline.run, iteration),
        groups=pipeline.plan.groups,
        max_model_len=options["max_model_len"],
        log_dir=pipeline.run.logs(iteration) / "server",
        port=options["port"],
        controller_port=options["controller_port"],
        worker_port=options["worker_port"],
        trust_remote_code=options["trust_remote_code"],
        seed=options["seed"],
        lora_rank=options["lora_rank"],
    )
    return plan_server(server, BASE_MODEL).services
