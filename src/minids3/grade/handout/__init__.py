"""What goes out: the students' bundle, and the instructor's guide."""

__all__: list[str] = []  # import from its modules
