"""Run this step for this family; see self_lengthen/steps/initial_responses.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen.config import FAMILY  # noqa: E402
from self_lengthen.steps.common import run_step  # noqa: E402
from self_lengthen.steps.initial_responses import STEP, make  # noqa: E402

run_step(STEP, FAMILY, make)
