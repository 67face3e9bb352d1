"""Grading: from a folder of submitted notebooks to grades, feedback and a class summary.

The life of one submission, room by room. ``cli`` is the command, ``records`` are the plain data
that the rooms hand to each other, ``private`` is where instructors write checks of their own.

1. ``handout`` made the bundle that the student got.
2. ``submissions``: ``collect`` finds the student's notebook among whatever was handed in,
   ``reading`` opens it, ``recognise`` says which cell is which, and ``merge`` puts the answers into
   the instructor's own notebook (``pristine``): one program per exercise, with the helper cells
   that ``slices`` finds it rests on.
3. ``process``: a ``pool`` of grading processes (each runs ``job``) takes one submission after the
   other. Each holds a ``zygote`` (``worker``), which forks a ``child`` per exercise into a sandbox
   (``minids3.isolation``). There ``runner`` executes the program, with the forbidden functions
   disarmed by ``tripwire``. Values go over the ``wire`` as plain JSON and are ``rebuild``-ed
   outside; what is counted is ``replay``-ed by a process that never saw the student's code.
4. ``judging``: the exercise's check runs here, not there, and calls an ``oracle`` that passes each
   call on. ``scoring`` makes points of the checklists, ``shortcuts`` says what may not be called.
5. ``reports``: the ``gradebook`` keeps the result, and ``feedback`` and ``summary`` tell it.

Nothing in a submission is believed: not its outputs, points or checks, nor what its process says.
"""

__all__: list[str] = []  # import from its modules
