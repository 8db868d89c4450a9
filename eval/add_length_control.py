"""A demand of length for every query of a data set; see self_lengthen/length_control.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_lengthen.errors import main_exit  # noqa: E402
from self_lengthen.length_control import main  # noqa: E402

main_exit("add_length_control.py", main)
