"""Turn a checkpoint of fairseq into a run folder; nothing in it is executed.

    import_fairseq.py checkpoint=model.pt dict_src=dict.de.txt dict_tgt=dict.en.txt
        bpe_codes=bpecodes out=runs/imported

Keys:
  checkpoint     a LightConv, DynamicConv or Transformer model, of 2018 to today
  dict_src       its dictionary of the source language
  dict_tgt       its dictionary of the target language
  out            the run folder to be made
  bpe_codes      its BPE codes (subword-nmt); without, text has its tokens parted by spaces
  bpe_codes_tgt  those of the target language, where they are others
Read off the checkpoint or the dictionaries unless given:
  src_lang       code of the source language, such as de
  tgt_lang       code of the target language
  moses          true: Moses makes the words; false: spaces part them; else true with bpe_codes
  normalize      Moses: whether quotes and dashes become ASCII
  split_dashes   Moses: whether well-known becomes well @-@ known
  escape         Moses: whether & becomes &amp;
  lowercase      whether text loses its case
For text that has its tokens parted by spaces:
  joins_pieces   true: outputs lose their @@ (default false)
"""

import logging
import signal
import sys
from typing import Any

from lightconv_mt.errors import ConfigError, LcmtError
from lightconv_mt.schemas import read_name
from lightconv_mt.typed import build_typed, types_at, unknown_key

# Without torch, so that help and typing mistakes are answered at once.
ImportConfig = read_name("lightconv_mt.imported_run", "ImportConfig")
_WORDS = {"true": True, "false": False, "null": None}


def main(words: list[str]) -> int:
    """Import what the words of the command line say; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    if {"-h", "--help"} & set(words):
        print(__doc__, end="")
        return 0
    # A terminated import cleans up after itself, like one that is interrupted.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        plain = _plain(words)
        build_typed(ImportConfig, plain, registers={})
        from lightconv_mt import imported_run

        imported_run.import_run(imported_run.ImportConfig(**plain))
    except LcmtError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _plain(words: list[str]) -> dict[str, Any]:
    """Values by key, those that are not text read as such."""
    plain: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        types = types_at(ImportConfig, key, registers={})
        if not equals:
            raise ConfigError(f"{word!r} is not key=value; --help shows the keys")
        if len(types) != 1:
            raise unknown_key(ImportConfig, key, registers={})
        if key in plain:
            raise ConfigError(f"{key} has several values; give one")
        is_text = types[0] in (str, str | None)
        plain[key] = value if is_text else _WORDS.get(value, value)
    return plain


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
