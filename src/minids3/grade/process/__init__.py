"""The student's process: started, asked and watched; plain data goes to it and comes back."""

__all__: list[str] = []  # import from its modules
