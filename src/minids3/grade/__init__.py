"""Grading: from a folder of submitted notebooks to grades, feedback and a class summary.

``minids3 grade NOTEBOOK SUBMISSIONS/ --out GRADES/`` collects (``collect``), puts the answers into
the instructor's own notebook (``merge``), grades them in a sandbox with the comparison outside it
(``grading``), and writes ``grades.csv``, ``grades.json``, a page per student and one for the class.
"""

__all__: list[str] = []  # import from its modules
