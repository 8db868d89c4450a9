"""Which of the nodes of a run this one is, from the environment; alone when it says nothing.

WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT mean nodes, not GPUs: `bash run.sh` starts once on
each. Under `srun` Slurm's own variables do instead.
"""

import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass

from self_lengthen.errors import UserError

LOOPBACK = "127.0.0.1"
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
SLURM_PORT_FROM, SLURM_PORTS = 20000, 10000  # below the ports that Linux gives to connections


@dataclass(frozen=True)
class Node:
    rank: int = 0
    size: int = 1  # nodes of the run
    master_addr: str = LOOPBACK
    master_port: int = 0
    address: str = LOOPBACK  # of this node: what it listens on, where the others reach it

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1


ALONE = Node()


def read_node(environ: Mapping[str, str] = os.environ) -> Node:
    """Raises UserError: a launcher's environment, a rank that cannot be, an address not found."""
    for name in LAUNCHERS:
        if name in environ:
            raise UserError(
                f"{name} is set: torchrun or the like starts a process for each GPU; start this "
                "once on every node, without a launcher"
            )
    named = any(name in environ for name in ("WORLD_SIZE", "RANK"))
    settings = environ if named else _slurm(environ)
    size = _number(settings, "WORLD_SIZE", 1)
    rank = _number(settings, "RANK", 0)
    if size < 1:
        raise UserError(f"WORLD_SIZE={size}: is the number of nodes, at least 1")
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank}: with WORLD_SIZE={size} the ranks are 0 to {size - 1}")
    if size == 1:
        return ALONE
    if "RANK" not in settings:
        raise UserError(f"RANK is missing: with WORLD_SIZE={size} each node has its own, from 0")
    return _node(settings, rank, size)


def hide_nodes(environ: MutableMapping[str, str] = os.environ) -> None:
    """Take the variables out of what our children inherit: torch and vLLM would take nodes for
    processes of one group. The trainer gets its own from us."""
    for name in VARIABLES:
        environ.pop(name, None)


def _node(settings: Mapping[str, str], rank: int, size: int) -> Node:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not settings.get(name):
            raise UserError(f"{name} is missing: with WORLD_SIZE={size} the nodes meet at RANK 0's")
    port = _number(settings, "MASTER_PORT", 0)
    if not 1 <= port <= 65535:
        raise UserError(f"MASTER_PORT={port}: there are ports 1 to 65535")
    name = settings["MASTER_ADDR"]
    try:
        master = socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise UserError(f"MASTER_ADDR={name}: has no IPv4 address ({error.strerror})") from error
    return Node(rank, size, master, port, _own_address(rank, name, master))


def _number(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text}: is no whole number") from None


def _own_address(rank: int, name: str, master: str) -> str:
    """RANK 0's is the master's; the others' is the one from which they reach it."""
    if rank == 0:
        with socket.socket() as probe:
            try:
                probe.bind((master, 0))
            except OSError as error:
                raise UserError(
                    f"MASTER_ADDR={name}: is no address of this node, but RANK is 0 (the nodes "
                    "meet at RANK 0)"
                ) from error
        return master
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))  # sends nothing, but chooses the way
        except OSError as error:
            raise UserError(f"MASTER_ADDR={name}: no way leads there ({error.strerror})") from error
        return probe.getsockname()[0]


def _slurm(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Slurm's variables as ours; nothing when it gave this job one node, or none."""
    nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1"))
    if nodes == "1":
        return {}
    if "SLURM_STEP_ID" not in environ:
        raise UserError(
            f"SLURM_NNODES={nodes}, but this was not started by srun: `srun bash run.sh ...` "
            "starts it on every node; with WORLD_SIZE=1 this node works alone"
        )
    tasks = environ.get("SLURM_STEP_NUM_TASKS", nodes)
    if tasks != nodes:
        raise UserError(
            f"srun starts {tasks} tasks on {nodes} nodes: give it --ntasks-per-node=1, one task "
            "uses all GPUs of its node"
        )
    hosts = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", ""))
    port = SLURM_PORT_FROM + int(environ.get("SLURM_JOB_ID", "0")) % SLURM_PORTS
    found = {"WORLD_SIZE": nodes, "RANK": environ.get("SLURM_NODEID", "0")}
    meeting = {"MASTER_ADDR": first_host(hosts), "MASTER_PORT": str(port)}
    given = {name: environ[name] for name in meeting if environ.get(name)}
    return {**found, **meeting, **given}


def first_host(nodelist: str) -> str:
    """Of Slurm's list: node[01-03,07],gpu5 -> node01."""
    first = re.split(r",(?![^\[]*\])", nodelist)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address, such as eth0."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # an interface without an address
                found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]
                if socket.inet_ntoa(found) == address:
                    return name
    return None
