"""All texts of a run as one data set; see self_lengthen/collect_data.py.

python collect_data.py [--results=results/<run>]
"""

from self_lengthen.collect_data import main
from self_lengthen.errors import main_exit

main_exit("collect_data.py", main)
