"""Run one command so that nothing of it outlives its owner: `guard.py GRACE_S COMMAND...`

The owner holds the write end of our standard input. When it closes - the owner stops us, exits or
is killed - every descendant of ours gets TERM, and KILL after GRACE_S seconds. Those that left the
command's process group (torchrun starts its workers in sessions of their own) come to us as
orphans, because we are their sub-reaper. Nothing else is ever signalled. Standard library only.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
POLL_S = 0.05


def main() -> int:
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the owner speaks to us by closing the pipe
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _before_exec(libc),
    )
    pidfd = os.pidfd_open(child.pid)
    readable, _, _ = select.select([0, pidfd], [], [])
    stopped = pidfd not in readable
    _stop_descendants(grace_s)
    status = child.wait()
    if stopped:
        return 128 + signal.SIGTERM
    return status if status >= 0 else 128 - status


def _before_exec(libc: ctypes.CDLL) -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # should we be killed ourselves
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _stop_descendants(grace_s: float) -> None:
    """TERM to every living descendant, KILL to those that are left after the grace."""
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while alive := _descendants():
        late = time.monotonic() > deadline
        for pid in alive:
            if late or pid not in told:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                told.add(pid)
        time.sleep(POLL_S)


def _descendants() -> list[int]:
    """Our living children, their children and so on, zombies left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
    ours, found = {os.getpid()}, []
    grew = True
    while grew:
        new = [pid for pid, parent in parents.items() if parent in ours and pid not in ours]
        grew = bool(new)
        ours.update(new)
        found.extend(new)
    return found


if __name__ == "__main__":
    sys.exit(main())
