"""What an answer is worth: prepared, checked from outside, scored, and looked at for shortcuts."""

__all__: list[str] = []  # import from its modules
