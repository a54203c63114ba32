"""Whatever comes in, one line goes out for it, in order, and nothing else."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightconv_mt import cli
from lightconv_mt.data.lines import decode_line
from lightconv_mt.data.tokenizer import Tokenizer, TokenizerConfig, TokenizerKind, train_tokenizer
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.long_lines import LongLines
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer

TEXT = [f"{a} {b} {n}" for n in range(60) for a, b in (("alpha", "beta"), ("gamma", "delta"))]

LINES = [
    b"",
    b" ",
    b"\t",
    b"\r",
    b"\r\r",
    b"alpha",
    b"alpha\r",
    b"alpha\rbeta",
    b"\x00",
    b"alpha\x00beta",
    b"\x01\x02\x03\x7f",
    b"\xff\xfe",
    b"\x80\x80\x80",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbfalpha",
    "alpha\u2028beta".encode(),
    "alpha\u2029beta".encode(),
    "alpha\x85beta".encode(),
    b"alpha\x0bbeta\x0cgamma",
    b"alpha\x1cbeta\x1dgamma\x1edelta",
    "👩‍👩‍👧‍👦".encode(),
    ("e" + "\u0301" * 5000).encode(),
    "\u202e\u202d\u2066".encode(),
    "\u200b\u200c\u200d\ufeff".encode(),
    "\u3000".encode(),
    "日本語の文".encode(),
    "ﬁﬂ½①".encode(),
    b"</s>",
    b"<s> <pad> <unk> </s>",
    b"<0x41><0xFF>",
    "\u2581".encode(),
    "\u2581\u2581alpha".encode(),
    b"a" * 100_000,
    b"alpha " * 20_000,
    b"\\n\\r\\u2028",
    b"'\"`$(rm -rf)`",
    b"%s %d {0} ${HOME}",
    b"-" * 3000,
]


@pytest.fixture(scope="module", params=LongLines)
def translator(request: pytest.FixtureRequest) -> Translator:
    torch.manual_seed(1)
    both = train_tokenizer(TokenizerConfig(vocab_size=300), TEXT)
    model = Seq2SeqTransformer(
        ModelConfig(
            mixer=MIXERS["lightconv"](encoder_kernel_sizes=[3], decoder_kernel_sizes=[3]),
            dim=16,
            ffn_dim=16,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=1,
        ),
        src_vocab_size=both.vocab_size,
        tgt_vocab_size=both.vocab_size,
        src_pad_id=both.ids.pad,
        tgt_pad_id=both.ids.pad,
    )
    return Translator(
        model.eval(),
        TokenizerPair(both, both),
        device=torch.device("cpu"),
        precision=torch.float32,
        max_source_tokens=64,
        long_lines=request.param,
    )


def translated(translator: Translator, content: bytes, **values: int) -> list[str]:
    """Translations of the lines of a file, as `lcmt-translate` makes them."""
    lines = (decode_line(raw)[0] for raw in io.BytesIO(content))
    options = DecodeConfig(**{"beam_size": 1, "max_length": 4, **values})
    stream = translator.translate_stream(lines, options, chunk_size=7, max_tokens=256)
    return [translation.text for translation in stream]


@pytest.mark.parametrize("line", LINES, ids=lambda line: ascii(line[:20]))
def test_each_line_is_answered_by_one(translator: Translator, line: bytes) -> None:
    (alone,) = translated(translator, line + b"\n")
    # Its neighbours stay what they are without it.
    among = translated(translator, b"alpha beta 3\n" + line + b"\ngamma delta 5\n")
    usual = translated(translator, b"alpha beta 3\ngamma delta 5\n")
    assert [among[0], among[2]] == usual
    assert len(among) == 3
    assert not set(alone) & set("\n\r")


@pytest.mark.parametrize("values", [{}, {"beam_size": 3}, {"beam_size": 3, "min_length": 4}])
def test_all_of_them_together_keep_their_number_and_order(
    translator: Translator, values: dict[str, int]
) -> None:
    order = [*range(len(LINES))] * 2
    random.Random(3).shuffle(order)
    found = translated(translator, b"".join(LINES[n] + b"\n" for n in order), **values)
    assert len(found) == len(order)
    by_line: dict[int, set[str]] = {}
    for n, text in zip(order, found, strict=True):
        by_line.setdefault(n, set()).add(text)
    assert all(len(texts) == 1 for texts in by_line.values())


def test_any_bytes_at_all(translator: Translator, thorough: bool) -> None:
    text = st.binary(max_size=40) | st.sampled_from([b"alpha. " * 40, "語。".encode() * 60])

    @settings(
        max_examples=10_000 if thorough else 500,
        deadline=10_000,
        derandomize=not thorough,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=st.lists(text, max_size=5), final=st.booleans())
    def check(content: list[bytes], final: bool) -> None:
        joined = b"\n".join(content) + (b"\n" if final else b"")
        lines = joined.count(b"\n") + (not joined.endswith(b"\n") and bool(joined))
        assert len(translated(translator, joined)) == lines

    check()


def test_any_text_survives_the_tokenizer(thorough: bool) -> None:
    tokenizers = [
        train_tokenizer(TokenizerConfig(vocab_size=285, kind=kind), TEXT)
        for kind in (TokenizerKind.unigram, TokenizerKind.bpe)
    ]

    @settings(
        max_examples=10_000 if thorough else 500,
        deadline=10_000,
        derandomize=not thorough,
        suppress_health_check=list(HealthCheck),
    )
    @given(text=st.text(max_size=60), seed=st.integers(0, 2**63))
    def check(text: str, seed: int) -> None:
        for tokenizer in tokenizers:
            plain = tokenizer.encode(text)
            (sampled,) = tokenizer.encode_sampled([text], alpha=0.3, seed=seed)
            assert tokenizer.decode(sampled) == tokenizer.decode(plain)
            assert all(0 <= number < tokenizer.vocab_size for number in sampled)

    check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"beam_size": -1}, "beam_size is -1"),
        ({"beam_size": 10**6}, "beam_size is 1000000"),
        ({"nbest": 6}, "nbest is 6"),
        ({"nbest": 0}, "nbest is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": -3}, "max_length is -3"),
        ({"min_length": -1}, "min_length is -1"),
        ({"min_length": 9, "max_length": 3}, "max_length is 3"),
        ({"max_length_ratio": -0.5}, "max_length_ratio is -0.5"),
        ({"max_length_ratio": float("inf")}, "max_length_ratio is inf"),
        ({"max_length_extra": -1}, "max_length_extra is -1"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"unk_penalty": float("inf")}, "unk_penalty is inf"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size is -2"),
        ({"seed": -1}, "seed is -1; give 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296; give 0 to 4294967295"),
    ],
)
def test_impossible_searches_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecodeConfig(**values)


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: b"",
        lambda model: b"\x00",
        lambda model: model[:1],
        lambda model: model[: len(model) // 2],
        lambda model: b"#!/bin/sh\n" + model,
        lambda model: model[::-1],
        lambda model: b"PK\x03\x04" + model,
        lambda model: b"\x80\x04" + model,
    ],
)
def test_models_that_are_none_never_pass_for_the_real_one(damage: Callable[[bytes], bytes]) -> None:
    real = train_tokenizer(TokenizerConfig(vocab_size=285), TEXT)
    try:
        found = Tokenizer(damage(real.model), name="given.model")
    except Exception as error:
        assert "given.model" in str(error)
        return
    assert found.digest != real.digest
    assert found.vocab_size > 0


@pytest.mark.parametrize(
    ("command", "words", "code", "message"),
    [
        ("translate", ["run_dir=/nowhere"], 4, "is no run folder"),
        ("translate", ["run_dir=."], 4, "is no run folder"),
        ("translate", ["run_dir=/dev/null"], 4, "is no run folder"),
        ("eval", ["hyp=/nowhere/h", "ref=/nowhere/r"], 3, "cannot read /nowhere/"),
        ("eval", ["hyp=.", "ref=."], 3, "cannot read"),
        ("train", ["run_dir=/proc/x", "experiment=demo"], 2, "cannot write run_dir=/proc/x"),
        ("train", ["run_dir=/dev/null", "experiment=demo"], 2, "cannot write run_dir=/dev/null"),
    ],
)
def test_folders_that_are_none_take_one_line(
    command: str,
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(command, words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in printed.err


def test_scores_of_files_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "h").write_bytes(b"a\nb\n")
    for content, message in ((b"a\n", "2"), (b"", "2"), (b"a\nb\nc\n", "3")):
        (tmp_path / "r").write_bytes(content)
        assert cli.main("eval", [f"hyp={tmp_path / 'h'}", f"ref={tmp_path / 'r'}"]) == 3
        printed = capsys.readouterr()
        assert printed.out == "" and message in printed.err
