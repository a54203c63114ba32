"""Batches to checkpoint: loss, optimiser, schedule, loop."""
