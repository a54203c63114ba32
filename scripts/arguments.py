"""Types of the words on scripts' command lines."""

import argparse


def positive(word: str) -> int:
    """A number of 1 or more."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number
