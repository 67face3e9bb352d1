"""Isolation: what a process gives up before it runs somebody else's code.

``sandbox.enter`` puts the process that calls it into a sandbox, for good: a user of its own where
it was root's, no files but those granted (``landlock``), no network, no processes, no signals to
others (``seccomp``), and limits on time, memory and files. ``sandbox.missing`` says what a machine
lacks for that. Nothing here knows what the code is or who asks: grading runs students' answers in
it, evaluation what a model wrote.
"""

__all__: list[str] = []  # import from its modules
