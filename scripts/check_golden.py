"""Compare the library with a golden folder of fairseq's inputs and outputs.

Prints the worst error of every quantity beside its tolerance; exits 1 when one is exceeded or
nothing was checked.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import torch

from lightconv_mt.errors import LcmtError
from lightconv_mt.interop.golden import TOLERANCES, Comparison, compare_folder
from lightconv_mt.ops import Backend


def main() -> int:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", choices=[backend.value for backend in Backend], default="auto")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    arguments = parser.parse_args()
    found: dict[str, list[Comparison]] = defaultdict(list)
    try:
        dtype = getattr(torch, arguments.dtype)
        for comparison in compare_folder(
            arguments.folder, backend=Backend(arguments.backend), dtype=dtype
        ):
            found[comparison.quantity].append(comparison)
    except (LcmtError, OSError, KeyError, ValueError) as error:
        print(f"check_golden: {arguments.folder}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    failed = 0
    print(
        f"{'quantity':<22} {'checked':>7} {'failed':>6} {'worst error':>12} "
        f"{'tolerance':>22}  worst case"
    )
    for quantity, tolerance in TOLERANCES.items():
        if comparisons := found[quantity]:
            worst = max(comparisons, key=lambda comparison: comparison.excess)
            bad = sum(comparison.excess > 0 for comparison in comparisons)
            failed += bad
            allowed = f"{tolerance.absolute:g} + {tolerance.relative:g} |x|"
            print(
                f"{quantity:<22} {len(comparisons):>7} {bad:>6} {worst.error:>12.2e} "
                f"{allowed:>22}  {worst.case}"
            )
    checked = sum(map(len, found.values()))
    print(f"{checked} comparisons, {failed} failed" if checked else "nothing was checked")
    return 0 if checked and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
