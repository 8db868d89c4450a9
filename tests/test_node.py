"""Claims about which node this is: from WORLD_SIZE and the like, or Slurm; mistakes are named."""

import socket

import pytest

from self_lengthen.errors import UserError
from self_lengthen.node import ALONE, Node, first_host, hide_nodes, interface_of, read_node

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_NNODES": "4",
    "SLURM_NODEID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "localhost,node[01-03]",
    "SLURM_JOB_ID": "123456",
}


@pytest.mark.parametrize("environ", [{}, {"WORLD_SIZE": "1"}, {"SLURM_NNODES": "1"}, {"RANK": "0"}])
def test_without_other_nodes_it_is_alone_and_on_loopback(environ):
    assert read_node(environ) == ALONE == Node(0, 1, "127.0.0.1", 0, "127.0.0.1")
    assert ALONE.leads and ALONE.alone


def test_the_leader_listens_on_the_masters_address():
    given = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.2", "MASTER_PORT": "29500"}
    assert read_node(given) == Node(0, 2, "127.0.0.2", 29500, "127.0.0.2")


def test_the_others_listen_where_they_reach_the_master_from():
    node = read_node({"WORLD_SIZE": "2", "RANK": "1", **MEETING})
    assert (node.rank, node.size, node.address) == (1, 2, "127.0.0.1")
    assert not node.leads and not node.alone


class TestSlurm:
    def test_its_variables_do_under_srun(self):
        # 123456 mod 10000 = 3456
        assert read_node(SRUN) == Node(2, 4, "127.0.0.1", 23456, "127.0.0.1")

    def test_what_is_given_beside_them_counts(self):
        assert read_node({**SRUN, "MASTER_PORT": "29999"}).master_port == 29999
        assert read_node({**SRUN, "WORLD_SIZE": "1"}) == ALONE

    def test_the_jobs_variables_do_where_a_step_has_none_of_its_own(self):
        given = {name: value for name, value in SRUN.items() if "STEP_N" not in name}
        node = read_node({**given, "SLURM_JOB_NODELIST": "localhost,other"})
        assert (node.rank, node.size, node.master_addr) == (2, 4, "127.0.0.1")

    @pytest.mark.parametrize(
        ("nodelist", "host"),
        [
            ("node01", "node01"),
            ("node[01-03,07],gpu5", "node01"),
            ("node[7,9]", "node7"),
            ("gpu5,node[01-03]", "gpu5"),
            ("rack[1-2]-node[3-4].local,x", "rack1-node3.local"),
            ("a-b,c", "a-b"),
        ],
    )
    def test_the_first_host_of_its_list(self, nodelist, host):
        assert first_host(nodelist) == host


MISTAKES = {
    "torchrun": (
        {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"},
        "TORCHELASTIC_RUN_ID is set: torchrun or the like starts a process for each GPU; start "
        "this once on every node, without a launcher",
    ),
    "a launcher's local rank": (
        {"LOCAL_RANK": "0"},
        "LOCAL_RANK is set: torchrun or the like starts a process for each GPU; start this once "
        "on every node, without a launcher",
    ),
    "rank beyond": (
        {"WORLD_SIZE": "2", "RANK": "2", **MEETING},
        "RANK=2: with WORLD_SIZE=2 the ranks are 0 to 1",
    ),
    "rank without others": ({"RANK": "1"}, "RANK=1: with WORLD_SIZE=1 the ranks are 0 to 0"),
    "negative rank": (
        {"WORLD_SIZE": "2", "RANK": "-1", **MEETING},
        "RANK=-1: with WORLD_SIZE=2 the ranks are 0 to 1",
    ),
    "no node": ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: is the number of nodes, at least 1"),
    "no number": ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: is no whole number"),
    "no rank": (
        {"WORLD_SIZE": "2", **MEETING},
        "RANK is missing: with WORLD_SIZE=2 each node has its own, from 0",
    ),
    "no master": (
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "29500"},
        "MASTER_ADDR is missing: with WORLD_SIZE=2 the nodes meet at RANK 0's",
    ),
    "no port": (
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"},
        "MASTER_PORT is missing: with WORLD_SIZE=2 the nodes meet at RANK 0's",
    ),
    "impossible port": (
        {"WORLD_SIZE": "2", "RANK": "1", **MEETING, "MASTER_PORT": "70000"},
        "MASTER_PORT=70000: there are ports 1 to 65535",
    ),
    "another's address": (
        {"WORLD_SIZE": "2", "RANK": "0", **MEETING, "MASTER_ADDR": "192.0.2.1"},
        "MASTER_ADDR=192.0.2.1: is no address of this node, but RANK is 0 (the nodes meet at RANK "
        "0)",
    ),
    "sbatch without srun": (
        {"SLURM_NNODES": "4", "SLURM_NODEID": "0"},
        "SLURM_NNODES=4, but this was not started by srun: `srun bash run.sh ...` starts it on "
        "every node; with WORLD_SIZE=1 this node works alone",
    ),
    "a task for each GPU": (
        {**SRUN, "SLURM_STEP_NUM_TASKS": "32"},
        "srun starts 32 tasks on 4 nodes: give it --ntasks-per-node=1, one task uses all GPUs of "
        "its node",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    environ, message = MISTAKES[mistake]
    with pytest.raises(UserError) as refusal:
        read_node(environ)
    assert str(refusal.value) == message


def test_children_do_not_inherit_the_nodes():
    environ = {"WORLD_SIZE": "2", "RANK": "1", **MEETING, "PATH": "/bin"}
    hide_nodes(environ)
    assert environ == {"PATH": "/bin"}


def test_a_name_without_address_is_named():
    given = {"WORLD_SIZE": "2", "RANK": "1", **MEETING, "MASTER_ADDR": "no-such-host.invalid"}
    with pytest.raises(UserError, match="^MASTER_ADDR=no-such-host.invalid: has no IPv4 address"):
        read_node(given)


def test_the_interface_of_an_address():
    names = {name for _, name in socket.if_nameindex()}
    assert interface_of("127.0.0.1") in names
    assert interface_of("192.0.2.1") is None
