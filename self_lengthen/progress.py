"""Progress of a step: a bar on a terminal, a plain line every half minute in a log."""

import logging
import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 30.0

log = logging.getLogger(__name__)


class Progress:
    """Counts finished units, starting at what an earlier run had finished."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done = name, total, done
        self.kept = 0
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit="unit") if terminal else None
        self._started = self._spoke = time.monotonic()
        self._done_before = done
        if not terminal:
            log.info("%s: %d of %d done before", name, done, total)

    def advance(self, kept: bool) -> None:
        self.done += 1
        self.kept += kept
        if self._bar is not None:
            self._bar.set_postfix(kept=self.kept, refresh=False)
            self._bar.update()
        elif time.monotonic() - self._spoke >= LINE_EVERY_S:
            self._speak()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._speak()

    def _speak(self) -> None:
        self._spoke = time.monotonic()
        seconds = self._spoke - self._started
        new = self.done - self._done_before
        log.info(
            "%s: %d of %d done, %d of the last %d kept, %.0f s",
            *(self.name, self.done, self.total, self.kept, new, seconds),
        )
