"""Run this step for this family; see self_lengthen/steps/self_instruct.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen.config import FAMILY  # noqa: E402
from self_lengthen.steps.common import run_step  # noqa: E402
from self_lengthen.steps.self_instruct import STEP, make  # noqa: E402

run_step(STEP, FAMILY, make)
