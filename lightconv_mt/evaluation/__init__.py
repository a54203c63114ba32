"""lcmt-eval: what is scored, by which metrics, how fast it came, and how all of it is shown."""
