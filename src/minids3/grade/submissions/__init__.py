"""From a folder of files to one program per student: found, read, told apart, taken to pieces."""

__all__: list[str] = []  # import from its modules
