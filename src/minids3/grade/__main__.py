"""``python -m minids3.grade``: the same as the ``minids3`` command."""

import sys

from minids3.grade.cli import main

__all__: list[str] = []

sys.exit(main())
