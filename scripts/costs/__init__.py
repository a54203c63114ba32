"""What the parts of a training step need, what the machine could do, and what it does."""
