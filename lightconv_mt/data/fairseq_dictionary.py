"""fairseq's dictionaries: `dict.de.txt`, a line `token count` each, behind four special tokens."""

import re
from pathlib import Path

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.errors import DataError

# fairseq's decoders begin with the end-of-sentence token; its own BOS (0) stands in no sentence.
FAIRSEQ_IDS = SpecialIds(bos=2, pad=1, eos=2, unk=3)
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")

_OVERWRITE = "#fairseq:overwrite"


class FairseqDictionary:
    """Symbols by id.

    Attributes:
        text: the file's content.
        symbols: spelling of every id, special ones first.
    """

    def __init__(self, text: str, *, name: str) -> None:
        """Read the content of a dictionary file.

        Args:
            text: lines `token count`, with ` #fairseq:overwrite` behind a token that may repeat an
                earlier one; the line's place gives the id, the count means nothing here.
            name: what errors call it.

        Raises:
            DataError: naming the first line that is none of these.
        """
        self.text = text
        self.symbols = list(SPECIAL_SYMBOLS)
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        for number, line in enumerate(_lines(text), start=1):
            symbol, _, count = line.rstrip().rpartition(" ")
            overwrites = count == _OVERWRITE
            if overwrites:
                symbol, _, count = symbol.rpartition(" ")
            if not re.fullmatch(r"[0-9]+", count, re.ASCII) or not symbol or " " in symbol:
                raise DataError(
                    f"{name}, line {number}: {line[:60]!r} is not 'token count'; "
                    f"give the dict.*.txt that the fairseq model was trained with"
                )
            if symbol in self._ids and not overwrites:
                raise DataError(
                    f"{name}, line {number}: {symbol!r} is there already; remove one, or "
                    f"write {_OVERWRITE} behind the one that counts"
                )
            self._ids[symbol] = len(self.symbols)
            self.symbols.append(symbol)
        if len(self.symbols) == len(SPECIAL_SYMBOLS):
            raise DataError(
                f"{name} has no tokens; give the dict.*.txt that the fairseq model was trained with"
            )

    @classmethod
    def read(cls, path: Path) -> "FairseqDictionary":
        """Read a dictionary file."""
        return cls(read_utf8(path, what="dictionary"), name=str(path))

    def __len__(self) -> int:
        """V, special tokens included."""
        return len(self.symbols)

    def id_of(self, word: str) -> int:
        """Id of a word, the unknown token's for others.

        Differs: words spelt as a special token, which fairseq turns into that token, are unknown.
        """
        number = self._ids.get(word, FAIRSEQ_IDS.unk)
        return number if number >= len(SPECIAL_SYMBOLS) else FAIRSEQ_IDS.unk


def read_utf8(path: Path, *, what: str) -> str:
    """The whole of a UTF-8 file.

    Raises:
        DataError: when it cannot be read or is no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read the {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no {what}: byte {error.start} is no UTF-8") from error


def _lines(text: str) -> list[str]:
    """Lines as Python's text files have them, which is how fairseq reads dictionaries."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines[:-1] if not lines[-1] else lines
