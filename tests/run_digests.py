"""What a run computed, to tell whether another computed the same to the bit."""

import hashlib
from pathlib import Path


def digests(run_dir: Path) -> dict[str, str]:
    """Of all that a run computed: weights, optimiser, states, average, metrics, scores."""
    names = ["checkpoints/*/*", "checkpoints/best", "average/*", "metrics.jsonl", "bleu.json"]
    found = {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in names
        for path in run_dir.glob(name)
    }
    assert len(found) > 10
    return found
