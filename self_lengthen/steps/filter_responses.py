"""Step 3: drop_short over the extended responses; mostly the longer ones stay.

Reads iter_N/extended_responses; writes iter_N/filtered. Needs no server.
"""

import time
from itertools import compress

from self_lengthen.files import read_rows
from self_lengthen.filters import Reason
from self_lengthen.runfolder import EXTENDED, FILTERED
from self_lengthen.steps.common import StepRun, keep_longer, summary, word_statistics

STEP = FILTERED


def make(step: StepRun) -> None:
    """Keep the longer extended responses of this iteration."""
    started = time.monotonic()
    extended = step.input(EXTENDED)
    step.claim()
    keep = keep_longer(read_rows(extended.data), step.rng("drop_short"))
    dropped = {str(Reason.DROP_SHORT): keep.count(False)} if not all(keep) else {}
    units = {"in": len(keep), "kept": sum(keep), "dropped": dropped, "failed": 0, "cut": 0}
    words = word_statistics(row["words"] for row in compress(read_rows(extended.data), keep))
    rows = compress(read_rows(extended.data), keep)
    step.folder.finish(rows, summary(step, units, time.monotonic() - started, words=words))
