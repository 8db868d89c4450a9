"""Before a run of many nodes writes anything, all prove that they are about the same run.

The same options, versions, git commit, number of GPUs and model files; and one results folder, for
which rank 0 writes a file with a random name that the others must see. The first difference is
named, and all stop.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, Protocol

from self_lengthen.claim import PROOF_PREFIX, git_commit, versions
from self_lengthen.cluster import Cluster
from self_lengthen.errors import RunError, UserError
from self_lengthen.files import SHARED_DISK_S, Row, wait_for_file

FACTS_S = 600.0  # to read the facts of a large model on a slow disk


class Plan(Protocol):
    """What all nodes are about to do."""

    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def results(self) -> Path: ...
    @property
    def fresh(self) -> bool: ...
    @property
    def gpus(self) -> Sized: ...


def agree(cluster: Cluster, plan: Plan) -> None:
    """Raises UserError on every node when they differ, with the difference."""
    if cluster.node.alone:
        return
    facts = {**facts_of(plan), "the git commit": git_commit()}
    facts |= {f"the version of {name}": version for name, version in versions().items()}
    cluster.publish(facts=facts)
    cluster.wait("what they are to do", FACTS_S, lambda rank: "facts" in cluster.state(rank))
    _refuse_difference(cluster.node.rank, facts, cluster.state(0)["facts"])
    cluster.barrier("agreed", FACTS_S)
    prove_shared_disk(cluster, plan.results)


def facts_of(plan: Plan) -> Row:
    options = {f"--{name}": value for name, value in sorted(plan.options.items())}
    others = {
        "--results": str(plan.results),
        "--fresh": plan.fresh,
        "the number of GPUs": len(plan.gpus),
        "the model's files": model_digest(Path(plan.options["base_model"])),
    }
    return {**options, **others}


def model_digest(folder: Path) -> str:
    """Of a model's small files, and of the names and sizes of its weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in (".json", ".jinja"):
            digest.update(file.name.encode() + file.read_bytes())
        elif file.suffix == ".safetensors":
            digest.update(f"{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _refuse_difference(rank: int, ours: Row, rank_0s: Row) -> None:
    for name in [*rank_0s, *(name for name in ours if name not in rank_0s)]:
        here, there = ours.get(name), rank_0s.get(name)
        if here != there:
            raise UserError(
                f"{name} is {here}, on rank 0 {there}: start every node with the same command, "
                "code and model"
            )


def prove_shared_disk(cluster: Cluster, results: Path) -> None:
    """Raises UserError when a rank does not see what rank 0 writes."""
    if cluster.node.leads:
        token = _existing(results) / f"{PROOF_PREFIX}{secrets.token_hex(8)}"
        try:
            token.touch()
        except OSError as error:
            raise UserError(
                f"--results={results}: cannot be made or written ({error.strerror}); give another "
                "folder"
            ) from error
        try:
            cluster.publish(token=str(token))
            cluster.barrier("the proof of a shared disk", SHARED_DISK_S + 30)
        finally:
            token.unlink()
        return
    cluster.wait("rank 0's file", SHARED_DISK_S, lambda rank: rank or cluster.state(0).get("token"))
    try:
        wait_for_file(Path(cluster.state(0)["token"]), "rank 0")
    except RunError as error:
        raise UserError(f"--results={results}: {error}") from error
    cluster.barrier("the proof of a shared disk", SHARED_DISK_S + 30)


def _existing(folder: Path) -> Path:
    while not folder.is_dir():
        folder = folder.parent
    return folder
