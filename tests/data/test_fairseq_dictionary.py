"""fairseq's dictionary files: ids by line, repeated tokens, broken lines."""

from pathlib import Path

import pytest

from lightconv_mt.data.fairseq_dictionary import FAIRSEQ_IDS, FairseqDictionary
from lightconv_mt.errors import DataError

TEXT = "the 90\nhouse@@ 30\nof 20\n\u2581of 7\nmadeupword0000 0\n"


def test_lines_are_numbered_behind_the_special_tokens() -> None:
    dictionary = FairseqDictionary(TEXT, name="dict.txt")
    assert len(dictionary) == 4 + 5
    assert dictionary.symbols[:5] == ["<s>", "<pad>", "</s>", "<unk>", "the"]
    words = ["the", "house@@", "of", "\u2581of", "madeupword0000"]
    assert [dictionary.id_of(word) for word in words] == [4, 5, 6, 7, 8]
    assert dictionary.id_of("thé") == FAIRSEQ_IDS.unk == 3


@pytest.mark.parametrize("word", ["<s>", "<pad>", "</s>", "<unk>", ""])
def test_no_text_turns_into_a_special_token(word: str) -> None:
    assert FairseqDictionary(TEXT, name="dict.txt").id_of(word) == FAIRSEQ_IDS.unk


def test_a_flagged_token_takes_the_place_of_an_earlier_one() -> None:
    dictionary = FairseqDictionary(
        "a 3\n<s> 2 #fairseq:overwrite\na 1 #fairseq:overwrite\nb 0", name="d"
    )
    assert dictionary.symbols[4:] == ["a", "<s>", "a", "b"]
    assert [dictionary.id_of(word) for word in ("a", "<s>", "b")] == [6, 5, 7]


def test_lines_end_as_in_text_files_and_nowhere_else() -> None:
    dictionary = FairseqDictionary("a 3\r\nb\u2028c 2\rd\x0b 1\n", name="d")
    assert dictionary.symbols[4:] == ["a", "b\u2028c", "d\x0b"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no tokens"),
        ("the 1\nhouse\n", "line 2: 'house' is not 'token count'"),
        ("the 1\n\nof 2\n", "line 2: '' is not 'token count'"),
        ("the -5\n", "line 1: 'the -5' is not 'token count'"),
        ("the 1.5\n", "line 1: .* is not 'token count'"),
        ("the ٣\n", "line 1: .* is not 'token count'"),
        ("t h 123\n", "line 1: .* is not 'token count'"),
        (" 5\n", "line 1: .* is not 'token count'"),
        ("the 1\nof 2\nthe 3\n", "line 3: 'the' is there already"),
        ("</s> 1\n", "line 1: '</s>' is there already"),
    ],
)
def test_broken_files_are_refused_by_line(text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=f"dict.txt.*{complaint}"):
        FairseqDictionary(text, name="dict.txt")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_bytes(b"the 1\n\xff 2\n")
    with pytest.raises(DataError, match=r"dict\.txt is no dictionary: byte 6 is no UTF-8"):
        FairseqDictionary.read(tmp_path / "dict.txt")
    with pytest.raises(DataError, match="cannot read the dictionary .*: No such file"):
        FairseqDictionary.read(tmp_path / "nowhere")
