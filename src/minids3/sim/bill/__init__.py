"""The Bill: a running ledger that ends in the article's $5.5 million, or does not.

It has one baseline, line 00: a dense model of V3's size in BF16, at a rate that a dense model has
reached in BF16 (``lines.DENSE_BF16_RATE``). A line with a price states two whole runs: V3's with
its idea (``gpu_hours``), and the same run without it (``without_hours``). What an idea saves is the
difference. Savings are each idea's alone and upper bounds; they overlap and do not add up.

Every notebook enters one line, computed from the released model's configuration. To add notebook
NN write ``line_NN`` in ``lines.py`` under ``@entry("NN")`` and export it here; ``show`` and
``figure`` follow.
"""

from __future__ import annotations

from minids3.sim.bill.draw import figure
from minids3.sim.bill.ledger import ENTRIES, Ledger, Line, entry, lines, show
from minids3.sim.bill.lines import PUBLISHED, line_00, line_01, line_02
from minids3.sim.bill.lines_03 import line_03
from minids3.sim.bill.lines_04 import line_04
from minids3.sim.bill.lines_05 import line_05
from minids3.sim.bill.lines_06 import line_06
from minids3.sim.bill.lines_08 import line_08
from minids3.sim.bill.lines_09 import line_09
from minids3.sim.bill.lines_10 import line_10
from minids3.sim.bill.lines_12 import line_12
from minids3.sim.bill.lines_13 import line_13
from minids3.sim.bill.lines_14 import line_14
from minids3.sim.bill.lines_15 import line_15
from minids3.sim.bill.lines_16 import line_16
from minids3.sim.bill.lines_17 import line_17

__all__ = [
    "ENTRIES",
    "PUBLISHED",
    "Ledger",
    "Line",
    "entry",
    "figure",
    "line_00",
    "line_01",
    "line_02",
    "line_03",
    "line_04",
    "line_05",
    "line_06",
    "line_08",
    "line_09",
    "line_10",
    "line_12",
    "line_13",
    "line_14",
    "line_15",
    "line_16",
    "line_17",
    "lines",
    "show",
]
