"""Runs of `lcmt-train` over choices and seeds, measured alike and put into one table."""
