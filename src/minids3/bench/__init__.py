"""Benchmarks: ``python -m minids3.bench TOPIC``. One file per topic; tests never time anything.

A benchmark states device, shapes and versions, measures against a peer in the same run by turns,
and reports a ratio. Peers such as transformers are imported only here and only when asked for.
"""

from minids3.bench.records import record, recorded
from minids3.bench.timing import Comparison, alternate, environment

__all__ = ["Comparison", "alternate", "environment", "record", "recorded"]
