"""Learn a run's vocabulary shortlist from its training pairs, for decode.shortlist.

For every source token the file holds the target tokens that it is translated to most often; what is
frequent anyway goes with every source. In the end it is told how many tokens of the validation
set's references are listed.
"""

import argparse
import logging
import sys
from itertools import islice
from pathlib import Path

import numpy as np

from arguments import positive
from lightconv_mt.config import TrainRunConfig, load_run_config
from lightconv_mt.data.corpus import read_corpus, read_source
from lightconv_mt.data.encoded import encode_corpus
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.shortlist import FILE, Shortlist
from lightconv_mt.errors import DataError, LcmtError

HELD_OUT = 2000  # validation pairs to look at, at most


def main(words: list[str]) -> int:
    """Learn what the words of the command line say; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="of the run")
    parser.add_argument("--per-piece", type=positive, default=100, help="tokens for a source token")
    parser.add_argument("--frequent", type=positive, default=100, help="tokens for every source")
    parser.add_argument("--iterations", type=positive, default=5, help="of learning")
    parser.add_argument("--pairs", type=positive, default=1_000_000, help="to learn from, at most")
    parser.add_argument("--out", type=Path, help=f"default: {FILE} in the run")
    arguments = parser.parse_args(words)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    out = arguments.out or arguments.run_dir / FILE
    try:
        config = load_run_config(arguments.run_dir)
        tokenizers = TokenizerPair.load(arguments.run_dir, config.tokenizer)
        shortlist = Shortlist.learn(
            encode_corpus(read_corpus(config.data), tokenizers),
            tokenizers,
            per_piece=arguments.per_piece,
            frequent=arguments.frequent,
            iterations=arguments.iterations,
            most_pairs=arguments.pairs,
        )
        shortlist.save(out, tokenizers)
        print(f"{out}: {coverage(shortlist, config, tokenizers)}")
    except LcmtError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: cannot write {out}: {error.strerror}", file=sys.stderr)
        return DataError.exit_code
    return 0


def coverage(shortlist: Shortlist, config: TrainRunConfig, tokenizers: TokenizerPair) -> str:
    """How much of the validation set is listed, and how long lists are."""
    assert config.data.valid is not None
    pairs = list(islice(read_source(config.data.valid, config.data), HELD_OUT))
    src = tokenizers.src.encode_batch([pair.src for pair in pairs])
    tgt = tokenizers.tgt.encode_batch([pair.tgt for pair in pairs])
    lists = [shortlist.tokens([*source, tokenizers.src.ids.eos]) for source in src]
    listed = sum(int(np.isin(each, own).sum()) for each, own in zip(tgt, lists, strict=True))
    total, size = sum(map(len, tgt)), np.mean([len(own) for own in lists])
    return (
        f"{size:.0f} of {tokenizers.tgt.vocab_size:,} tokens a sentence; "
        f"{listed / max(1, total):.2%} of {total:,} reference tokens of data.valid are among them"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
