"""Operations with their own gradients, one file per topic; ``nn`` builds its layers of them."""

__all__: list[str] = []  # import from its modules
