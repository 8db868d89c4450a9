"""Two nodes on one machine: two network namespaces, each with an address of its own.

Where the machine forbids namespaces, both nodes are on loopback; `how` says which it is.
"""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from self_lengthen.ports import free_ports
from tests.real import Script

SUBNET = "10.83.71"  # seen by the two namespaces alone


@dataclass
class Nodes:
    """Where each rank runs, and how it finds the others."""

    how: str
    inside: tuple[tuple[str, ...], ...]
    master_addr: str
    master_port: int

    def env(self, rank: int) -> dict[str, str]:
        meeting = {"MASTER_ADDR": self.master_addr, "MASTER_PORT": str(self.master_port)}
        return {"WORLD_SIZE": str(len(self.inside)), "RANK": str(rank), **meeting}

    def start(self, rank: int, *command: str, log: Path) -> Script:
        return Script(*command, log=log, inside=self.inside[rank], env=self.env(rank))


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    names = [f"slt-{uuid.uuid4().hex[:6]}-{rank}" for rank in range(2)]
    try:
        if _make(names):
            inside = tuple(("ip", "netns", "exec", name) for name in names)
            yield Nodes("two network namespaces", inside, f"{SUBNET}.1", 29400)
        else:
            print("no network namespaces here: both nodes are on loopback")
            yield Nodes("two nodes on loopback", ((), ()), "127.0.0.2", *free_ports("127.0.0.2", 1))
    finally:
        for name in names:
            if os.path.exists(f"/run/netns/{name}"):
                subprocess.run(["ip", "netns", "delete", name], check=True, timeout=30)


def _make(names: list[str]) -> bool:
    """Both namespaces, joined by a virtual cable; whether this machine lets us."""
    ends = [f"v{name[4:]}" for name in names]
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add {ends[0]} type veth peer name {ends[1]}")
    for rank, (name, end) in enumerate(zip(names, ends, strict=True)):
        commands.append(f"ip link set {end} netns {name}")
        commands.append(f"ip -n {name} addr add {SUBNET}.{rank + 1}/24 dev {end}")
        commands += [f"ip -n {name} link set {device} up" for device in (end, "lo")]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
