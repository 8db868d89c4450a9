"""Run this step for this family; see self_lengthen/steps/make_sft_data.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama.config import FAMILY  # noqa: E402
from self_lengthen.steps.common import run_step  # noqa: E402
from self_lengthen.steps.make_sft_data import STEP, make  # noqa: E402

run_step(STEP, FAMILY, make)
