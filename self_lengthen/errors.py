"""What is said to a user in one line, without a traceback."""

import errno
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

USAGE_EXIT = 2  # a mistake of the user's: nothing was changed
FAILURE_EXIT = 1  # the run could not go on: what was finished is kept
INTERRUPT_EXIT = 130  # Ctrl-C, as shells report it
UNREAD_EXIT = 141  # nobody reads our stdout any more, as shells report SIGPIPE

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


class UserError(Exception):
    """A mistake that the user can mend: one line that names the thing and the remedy."""


class RunError(Exception):
    """The run cannot go on: one line that names what failed and where its log is."""


def main_exit(program: str, main: Callable[[], None]) -> NoReturn:
    """Run `main` and leave the process: expected errors become one line on stderr.

    Without a word where what is printed goes to a program that has ended, as in `... | head`.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_say(f"{program}: {error}", USAGE_EXIT))
    except RunError as error:
        sys.exit(_say(f"{program}: {error}", FAILURE_EXIT))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout.fileno()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
            sys.exit(UNREAD_EXIT)
        if error.errno not in DISK_ERRORS:
            raise
        sys.exit(_say(f"{program}: {_disk_line(error)}", FAILURE_EXIT))
    except KeyboardInterrupt:
        sys.exit(_say(f"{program}: interrupted; the same command continues", INTERRUPT_EXIT))
    sys.exit(0)


def _nobody_reads(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _disk_line(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"the disk does not take what is written{where}: {os.strerror(error.errno)}; make room, "
        "then the same command continues"
    )


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status
