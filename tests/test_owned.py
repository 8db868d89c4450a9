"""Promise 8: only our own processes are ever signalled, and after any exit none of ours is left.

The trees are real processes. Every wait has a deadline; what a test starts, it ends by its id.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from self_lengthen.owned import Owned

GRACE_S = 0.3
DEADLINE_S = 60  # of every wait: generous, the machine may be busy
LASTS_S = 120  # a process that nobody ends is gone after the tests

# Each process of the tree leaves its number in $1 and has a `sleep` of its own, which ignores what
# its shell ignores.
TREE = f"""
note() {{ echo "$BASHPID" > "$1/$2.new" && mv "$1/$2.new" "$1/$2"; }}
export -f note
note "$1" parent
(note "$1" child; sleep {LASTS_S}) &
(trap "" TERM; note "$1" ignores_term; sleep {LASTS_S}) &
setsid bash -c 'note "$0" own_session; sleep {LASTS_S} & wait' "$1" &
setsid bash -c 'trap "" TERM HUP; note "$0" own_session_ignores_term; sleep {LASTS_S}; :' "$1" &
( ( (note "$1" double_fork; sleep {LASTS_S}) & ) & )
wait
"""
PARTS = {
    *("parent", "child", "ignores_term", "own_session", "own_session_ignores_term"),
    "double_fork",
}

# Owns the command of its arguments until it is ended; says the guard's number.
OWNER = """
import json, signal, sys, time
from self_lengthen.owned import Owned
signal.signal(signal.SIGINT, signal.SIG_IGN)
with Owned("tree", json.loads(sys.argv[1]), None, grace_s=float(sys.argv[2])) as owned:
    print(owned.pid, flush=True)
    time.sleep(120)
"""


def until(happens: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happens():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def tree_command(pids: Path) -> list[str]:
    pids.mkdir(exist_ok=True)
    return ["bash", "-c", TREE, "tree", str(pids)]


def tree(pids: Path) -> list[int]:
    """The numbers of all processes of the tree, once they are there; with those they started."""
    until(lambda: {f.name for f in pids.iterdir()} >= PARTS, "the start of the tree")
    known = {int((pids / name).read_text()) for name in PARTS}
    until(lambda: len(below(known)) >= len(known) - 1, "a sleep of each")
    pids = known | below(known)
    lasting = sorted(pid for pid in pids if alive(pid))  # not a command that bash ran meanwhile
    assert known <= set(lasting)
    return lasting


def below(parents: set[int]) -> set[int]:
    """Living children of these processes."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) in parents and fields[0] not in "ZX":
                found.add(int(entry.name))
    return found


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[list[str]], subprocess.Popen]]:
    """Starts a process that owns a command; leaves none behind, whatever the test does."""
    started = []

    def start(command: list[str], grace_s: float = GRACE_S) -> subprocess.Popen:
        argv = [sys.executable, "-c", OWNER, json.dumps(command), str(grace_s)]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path
        )
        started.append(process)
        assert process.stdout.readline().strip().isdigit()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(DEADLINE_S)
        process.stdout.close()


class TestTheWholeTreeIsGone:
    def test_after_stop(self, tmp_path):
        owned = Owned("tree", tree_command(tmp_path / "pids"), None, grace_s=GRACE_S)
        pids = tree(tmp_path / "pids")
        assert all(map(alive, pids))
        owned.stop()
        assert [pid for pid in pids if alive(pid)] == []
        assert owned.poll() == 128 + signal.SIGTERM

    def test_after_an_exception(self, tmp_path):
        with (
            pytest.raises(KeyboardInterrupt),
            Owned("tree", tree_command(tmp_path / "pids"), None, grace_s=GRACE_S),
        ):
            pids = tree(tmp_path / "pids")
            raise KeyboardInterrupt
        assert [pid for pid in pids if alive(pid)] == []

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
    def test_after_the_death_of_the_owner(self, tmp_path, owner, number):
        process = owner(tree_command(tmp_path / "pids"))
        pids = tree(tmp_path / "pids")
        process.send_signal(number)
        until(lambda: not any(map(alive, pids)), "the end of the tree")

    def test_after_the_command_itself_has_ended(self, tmp_path):
        pids = tmp_path / "pids"
        command = tree_command(pids)
        # The parent ends by itself when the test says so; its children would stay.
        command[2] = TREE.replace(
            "\nwait\n", '\nuntil [[ -e "$1/end" ]]; do sleep 0.02; done; exit 7'
        )
        with Owned("tree", command, None, grace_s=GRACE_S) as owned:
            everyone = tree(pids)
            (pids / "end").touch()
            assert owned.wait(DEADLINE_S) == 7
            assert [pid for pid in everyone if alive(pid)] == []

    def test_before_the_grace_is_over_when_all_obey(self, tmp_path):
        owned = Owned("sleep", ["sleep", str(LASTS_S)], None, grace_s=DEADLINE_S)
        until(lambda: below({owned.pid}), "the start of the command")
        started = time.monotonic()
        owned.stop()
        assert time.monotonic() - started < DEADLINE_S / 2

    def test_when_it_is_stopped_at_once(self, tmp_path):
        """The guard may not have come up yet."""
        owned = Owned("sleep", ["sleep", str(LASTS_S)], None, grace_s=GRACE_S)
        owned.stop()
        assert not alive(owned.pid)
        assert owned.poll() is not None
        owned.stop()  # a second time changes nothing


class TestOnlyOurs:
    def test_a_decoy_with_the_same_words_survives(self, tmp_path, decoy):
        pids = tmp_path / "pids"
        with Owned("tree", [*tree_command(pids), *decoy.args[3:]], None, grace_s=GRACE_S):
            ours = tree(pids)
        assert not any(map(alive, ours))
        assert decoy.poll() is None

    def test_another_owners_tree_survives(self, tmp_path):
        folders = [tmp_path / "one", tmp_path / "two"]
        with Owned("other", tree_command(folders[1]), None, grace_s=GRACE_S):
            others = tree(folders[1])
            with Owned("tree", tree_command(folders[0]), None, grace_s=GRACE_S):
                tree(folders[0])
            assert all(map(alive, others))

    def test_none_of_the_tree_is_in_the_owners_group_or_session(self, tmp_path):
        with Owned("tree", tree_command(tmp_path / "pids"), None, grace_s=GRACE_S) as owned:
            ours = [owned.pid, *tree(tmp_path / "pids")]
            assert os.getpgid(0) not in map(os.getpgid, ours)
            assert os.getsid(0) not in map(os.getsid, ours)


# Says which signals reach it; ends only by TERM.
LISTENER = """
trap 'echo INT >> "$1"' INT
trap 'echo TERM >> "$1"; exit' TERM
echo started >> "$1"
while :; do sleep 0.05; done
"""


def test_ctrl_c_reaches_the_owner_alone(tmp_path, owner):
    """A terminal's Ctrl-C is SIGINT to its foreground group; the owner decides what is stopped."""
    heard = tmp_path / "heard"
    process = owner(["bash", "-c", LISTENER, "listener", str(heard)], grace_s=DEADLINE_S)
    until(heard.exists, "the start of the command")
    os.killpg(process.pid, signal.SIGINT)  # this owner ignores it
    time.sleep(0.3)
    assert heard.read_text().split() == ["started"]
    assert process.poll() is None
    process.kill()
    until(lambda: heard.read_text().split() == ["started", "TERM"], "the end of the command")


def test_a_command_of_ours_still_hears_ctrl_c_from_its_own_owner(tmp_path):
    """The guard ignores signals; what it starts must not inherit that."""
    heard = tmp_path / "heard"
    with Owned("listener", ["bash", "-c", LISTENER, "l", str(heard)], None, grace_s=GRACE_S) as own:
        until(heard.exists, "the start of the command")
        (pid,) = below({own.pid})
        os.kill(pid, signal.SIGINT)
        until(lambda: "INT" in heard.read_text(), "the signal")


class TestExitStatus:
    @pytest.mark.parametrize(
        ("command", "status"),
        [
            ("exit 0", 0),
            ("exit 3", 3),
            ("kill -KILL $$", 128 + signal.SIGKILL),
            ("kill -SEGV $$", 128 + signal.SIGSEGV),
        ],
    )
    def test_it_is_the_commands(self, command, status):
        with Owned("command", ["bash", "-c", command], None, grace_s=GRACE_S) as owned:
            assert owned.wait(DEADLINE_S) == status
            assert owned.poll() == status
        assert owned.poll() == status  # also when it is stopped afterwards

    def test_it_is_none_while_the_command_runs(self):
        with Owned("sleep", ["sleep", str(LASTS_S)], None, grace_s=GRACE_S) as owned:
            assert owned.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                owned.wait(0.05)

    def test_a_program_that_is_not_there_fails_and_says_so(self, tmp_path):
        log = tmp_path / "log"
        with Owned("nothing", ["/no/such/program"], log, grace_s=GRACE_S) as owned:
            assert owned.wait(DEADLINE_S) != 0
        assert "/no/such/program" in owned.log_tail()


class TestLog:
    def test_both_streams_are_appended(self, tmp_path):
        log = tmp_path / "logs" / "new" / "log"
        for word in ("first", "second"):
            script = f"echo {word}; echo {word} error >&2"
            with Owned("talk", ["bash", "-c", script], log, grace_s=GRACE_S) as owned:
                assert owned.wait(DEADLINE_S) == 0
        assert log.read_text().splitlines() == ["first", "first error", "second", "second error"]

    def test_the_tail_is_its_last_lines(self, tmp_path):
        log = tmp_path / "log"
        with Owned("talk", ["seq", "40"], log, grace_s=GRACE_S) as owned:
            owned.wait(DEADLINE_S)
        assert owned.log_tail().split() == [str(number) for number in range(26, 41)]

    def test_the_command_gets_our_environment_and_what_is_added(self, tmp_path, monkeypatch):
        monkeypatch.setenv("OURS", "one")
        log = tmp_path / "log"
        script = 'echo "$OURS $ADDED"; cat'  # nothing to read: no terminal, no end to wait for
        with Owned("talk", ["bash", "-c", script], log, {"ADDED": "two"}, GRACE_S) as owned:
            assert owned.wait(DEADLINE_S) == 0
        assert log.read_text() == "one two\n"
