"""Running the real scripts from a test, and finding what is left of them."""

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "SELF_LENGTHEN_TEST"  # every process that a test starts inherits it


class Script:
    """One `bash SCRIPT ...` as a user starts it, with a mark by which its processes are found."""

    def __init__(
        self,
        *command: str,
        log: Path,
        cwd: Path = ROOT,
        inside: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        """`inside`: a command that runs this one, such as in a namespace; `env` is added."""
        self.mark = uuid.uuid4().hex
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*inside, "bash", *command],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {}), MARK: self.mark},
                start_new_session=True,
            )

    def wait(self, timeout_s: float) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {timeout_s} s:\n{self.text()}") from None

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> dict[int, str]:
        """Number and command line of its processes that still live."""
        found = {}
        for process in Path("/proc").iterdir():
            try:
                if (
                    process.name.isdigit()
                    and self.mark.encode() in (process / "environ").read_bytes()
                ):
                    command = (process / "cmdline").read_text().replace("\0", " ")
                    found[int(process.name)] = command
            except OSError:
                continue  # ended meanwhile
        return found

    def left(self) -> list[str]:
        """Command lines of its processes that still live."""
        return list(self.processes().values())

    def gone(self, timeout_s: float = 20) -> bool:
        """Nothing of it is left, at the latest after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.left():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True


def wait_for(condition, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.05)
