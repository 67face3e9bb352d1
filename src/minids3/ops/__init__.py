"""Operations with their own gradients, one file per topic; ``nn`` builds its layers of them."""
