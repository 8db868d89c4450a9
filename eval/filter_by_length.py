"""The conversations that state one length and keep to it; see self_lengthen/length_filter.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_lengthen.errors import main_exit  # noqa: E402
from self_lengthen.length_filter import main  # noqa: E402

main_exit("filter_by_length.py", main)
