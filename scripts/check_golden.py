"""Compare the library with a golden folder of fairseq's inputs and outputs.

Imports the checkpoints in it too. Prints the worst error of every quantity beside its tolerance;
exits 1 when one is exceeded or nothing was checked.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lightconv_mt.decode.translator import Translator
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
        backend = Backend(arguments.backend)
        for comparison in compare_folder(
            arguments.folder,
            backend=backend,
            dtype=dtype,
            open_imported=partial(open_imported, backend),
        ):
            found[comparison.quantity].append(comparison)
    except (LcmtError, OSError, KeyError, ValueError) as error:
        print(f"check_golden: {arguments.folder}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    failed = 0
    print(
        f"{'quantity':<24} {'checked':>7} {'failed':>6} {'worst error':>12} "
        f"{'tolerance':>22}  worst case"
    )
    for quantity, tolerance in TOLERANCES.items():
        if comparisons := found[quantity]:
            worst = max(comparisons, key=lambda comparison: comparison.excess)
            bad = sum(comparison.excess > 0 for comparison in comparisons)
            failed += bad
            allowed = f"{tolerance.absolute:g} + {tolerance.relative:g} |x|"
            print(
                f"{quantity:<24} {len(comparisons):>7} {bad:>6} {worst.error:>12.2e} "
                f"{allowed:>22}  {worst.case}"
            )
    checked = sum(map(len, found.values()))
    print(f"{checked} comparisons, {failed} failed" if checked else "nothing was checked")
    return 0 if checked and not failed else 1


@contextmanager
def open_imported(backend: Backend, checkpoint: Path, folder: Path) -> Iterator[Translator]:
    """Import a checkpoint into a run folder and open that like any other."""
    from lightconv_mt.config import Device, RuntimeConfig
    from lightconv_mt.imported_run import ImportConfig, import_run
    from lightconv_mt.trained_run import load_translator

    with TemporaryDirectory() as scratch:
        run = import_run(
            ImportConfig(
                checkpoint=str(checkpoint),
                dict_src=str(folder / "dict.src.txt"),
                dict_tgt=str(folder / "dict.tgt.txt"),
                out=f"{scratch}/run",
            )
        )
        yield load_translator(
            str(run), "auto", RuntimeConfig(device=Device.cpu, kernels=backend, keep_memory=False)
        )


if __name__ == "__main__":
    sys.exit(main())
