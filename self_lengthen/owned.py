"""Processes that we own: started under a guard, logged to a file, gone when we are.

    with Owned("worker 0", command, log) as worker:
        ...
Leaving the block stops the whole process tree; so does the death of this process, however it dies.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

GUARD = Path(__file__).with_name("guard.py")
GRACE_S = 15.0  # between TERM and KILL
GUARD_S = 60.0  # more for the guard to end: killed by us it would leave orphans, on a busy machine
LOG_TAIL_LINES = 15


class Owned:
    """One command and everything that it starts."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path | None,
        env: dict[str, str] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        """`log` None: the command writes where we write. `env` is added to our environment."""
        self.name, self.command, self.log, self.grace_s = name, command, log, grace_s
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("ab")
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-S", str(GUARD), str(grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def pid(self) -> int:
        """Of the guard; the command is its child."""
        return self._guard.pid

    def poll(self) -> int | None:
        """The exit status of the command, None while it runs."""
        return self._guard.poll()

    def wait(self, timeout_s: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired at the deadline."""
        return self._guard.wait(timeout_s)

    def stop(self) -> None:
        """End the process tree and wait until it is gone."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(self.grace_s + GUARD_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()

    def log_tail(self) -> str:
        """The last lines of the log, for a person who looks for the reason."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])

    def __enter__(self) -> "Owned":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
