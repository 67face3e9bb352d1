"""What is told, and to whom: the gradebook, a page per student, a page of the class."""

__all__: list[str] = []  # import from its modules
