"""Plans for kernels on tiles of a card."""
