"""run.sh with stand-ins for all that needs a model, in processes of their own as in earnest.

    python -m tests.stand_in run --demo --results=DIR ...      options of run.sh

Real: options, folder, nodes, orders, guards, step scripts, journals. Stand-ins: the server is
fakes.FakeServer with a FakeModel whose answers follow from a call's seed alone, so that every run
of the same options makes the same data, however often it is killed; the trainer writes checkpoints.
Each part imports what it needs and no more: it is started many times.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

HERE = [sys.executable, "-m", "tests.stand_in"]
REPLY_S = 0.03  # of the server
TRAINING_STEPS, TRAINING_STEP_S = 8, 0.15
TROUBLE = 0.2  # share of replies that are rejected
LOST_AFTER_S = 4.0


def start_run() -> None:
    from self_lengthen import cluster, run
    from self_lengthen.errors import main_exit
    from self_lengthen.serving import share
    from self_lengthen.training import launch

    def server_command(plan, iteration, *_: str) -> list[str]:
        ready = share.server_logs(plan, iteration) / "ready.json"
        return [*HERE, "server", plan.family.name, str(ready)]

    real_step = run.Pipeline.step_command

    def step_command(self, *asked) -> list[str]:
        _, *script = real_step(self, *asked)
        return [*HERE, "step", *script]

    share.server_command = server_command
    run.Pipeline.step_command = step_command
    run.Pipeline._report = lambda pipeline: None
    launch.TrainingJob.command = property(lambda job: [*HERE, "train", str(job.config_file)])
    launch.POLL_S = share.POLL_S = run.POLL_S = 0.05
    cluster.BEAT_S, cluster.LOST_AFTER_S = 0.2, LOST_AFTER_S
    main_exit("run.sh", run.main)


def serve(family: str, ready: str) -> None:
    from self_lengthen.family import load_family
    from self_lengthen.files import write_json
    from tests.fakes import Call, FakeModel, FakeServer, Reply, Request, Turn

    model = FakeModel(load_family(family), trouble=TROUBLE)

    def answer(request: Request) -> Turn:
        first, *opening = request.body["messages"]
        opened_with = opening[0]["content"] if opening else ""
        reply = model(Call("", first["content"], None, request.body["seed"], opened_with))
        if isinstance(reply, Exception):  # the context is full
            full = {"object": "error", "message": str(reply), "code": 40303}
            return Turn(400, body=full, delay_s=REPLY_S)
        if isinstance(reply, Reply):
            return Turn(text=reply.text, finish_reason=reply.finish_reason, delay_s=REPLY_S)
        return Turn(text=reply, delay_s=REPLY_S)

    with FakeServer(answer) as server:
        write_json(Path(ready), {"base_url": server.url, "models": []})
        while True:
            time.sleep(60)


def step(script: str) -> None:
    from self_lengthen.steps import make_sft_data

    make_sft_data.load_tokenizer = lambda *_: None  # seconds to import, and tested elsewhere
    make_sft_data.default_system_prompt = lambda *_: ""
    make_sft_data.verify_template = lambda *_: None
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")


def train(config_file: str) -> None:
    """Goes on from its checkpoint; on another rank than 0 it only takes the time."""
    import yaml

    output = Path(yaml.safe_load(Path(config_file).read_text())["output_dir"])
    writes = os.environ.get("NODE_RANK", "0") == "0"
    done = max([int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")], default=0)
    for number in range(done + 1, TRAINING_STEPS + 1):
        time.sleep(TRAINING_STEP_S)
        if writes:
            checkpoint = output / f"checkpoint-{number}"
            checkpoint.mkdir(parents=True)
            with (output / "trainer_log.jsonl").open("a") as log:
                log.write(json.dumps({"loss": 1.0, "current_steps": number}) + "\n")
            (checkpoint / "trainer_state.json").write_text("{}")
    if writes:
        (output / "adapter_config.json").write_text('{"r": 8}')
        (output / "adapter_model.safetensors").write_text(f"{TRAINING_STEPS} steps")


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    if mode == "run":
        sys.argv = sys.argv[1:]
        start_run()
    elif mode == "step":
        step(arguments[0])
    else:
        {"server": serve, "train": train}[mode](*arguments)
