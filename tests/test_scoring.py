"""Scores equal the sacrebleu command's; test sets come from its cache."""

import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.scoring import Score, load_test_set, score

CACHE = Path(__file__).parents[2] / "shared" / "data" / "sacrebleu-cache"
needs_cache = pytest.mark.skipif(not CACHE.is_dir(), reason="no filled sacrebleu cache beside")

WORDS = "ein kleiner Hund läuft über die grüne Wiese , und zwei Männer sehen ihm zu . ( 3,5 km ) !"


def corpus(*, lines: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Hypotheses and two reference streams that agree in part; some lines are empty."""
    rng = random.Random(seed)
    words = WORDS.split()
    streams: tuple[list[str], list[str], list[str]] = ([], [], [])
    for number in range(lines):
        sentence = [rng.choice(words) for _ in range(rng.randint(1, 14))]
        for stream in streams:
            noisy = [rng.choice(words) if rng.random() < 0.2 else word for word in sentence]
            text = re.sub(r" ([,.!)])", r"\1", " ".join(noisy))
            stream.append("" if number == 3 and stream is streams[0] else text)
    return streams


def command(folder: Path, *args: str, hypotheses: list[str], references: list[list[str]]) -> object:
    """What `sacrebleu` prints as JSON."""
    names = [f"ref{number}" for number in range(len(references))]
    for name, stream in zip(["hyp", *names], [hypotheses, *references], strict=True):
        (folder / name).write_text("".join(f"{line}\n" for line in stream), encoding="utf-8")
    call = [sys.executable, "-m", "sacrebleu", *names, "-i", "hyp", "-w", "2", *args]
    environment = {key: value for key, value in os.environ.items() if key != "SACREBLEU_FORMAT"}
    done = subprocess.run(call, cwd=folder, capture_output=True, check=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.parametrize("num_references", [1, 2])
@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["-lc"], {"lowercase": True}),
        (["--tokenize", "intl"], {"tokenize": "intl"}),
        (["--tokenize", "char", "-lc"], {"tokenize": "char", "lowercase": True}),
        (["-l", "en-zh"], {"tgt_lang": "zh"}),
    ],
)
def test_scores_equal_the_commands(
    tmp_path: Path, num_references: int, flags: list[str], options: dict[str, object]
) -> None:
    hypotheses, *references = corpus(lines=40, seed=len(flags) + num_references)
    references = references[:num_references]
    expected = command(
        tmp_path, "-m", "bleu", "chrf", "ter", *flags, hypotheses=hypotheses, references=references
    )
    found = score(hypotheses, references, **options)  # type: ignore[arg-type]
    assert [(item.name, round(item.value, 2), item.signature) for item in found] == [
        (item["name"], item["score"], item["signature"])
        for item in expected  # type: ignore[attr-defined]
    ]
    assert 10 < found[0].value < 90


def test_text_has_two_decimals_and_the_signature() -> None:
    assert Score("BLEU", 27.305, "nrefs:1|case:mixed").text == "BLEU = 27.30 nrefs:1|case:mixed"
    given = Score("BLEU", 27.305, "v", mean=27.295, interval=1.0, p_value=0.5)
    assert given.text == "BLEU = 27.30 (μ = 27.30 ± 1.00) v"
    (perfect,) = score(["Das ist gut so."], [["Das ist gut so."]], metrics=["bleu"])
    assert perfect.text.startswith("BLEU = 100.00 nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")


def test_metrics_come_in_the_order_asked_for() -> None:
    hypotheses, reference, _ = corpus(lines=5, seed=0)
    assert [item.name for item in score(hypotheses, [reference], metrics=["ter", "chrf"])] == [
        "TER",
        "chrF2",
    ]


def test_lowercase_is_bleus_alone() -> None:
    cased, caseless = (
        score(["das HAUS ist sehr alt"], [["Das Haus ist sehr alt"]], lowercase=lowercase)
        for lowercase in (False, True)
    )
    assert cased[0].value < caseless[0].value == pytest.approx(100.0)
    assert cased[1:] == caseless[1:]


def test_rouge_counted_by_hand() -> None:
    pytest.importorskip("rouge_score")
    hypotheses = ["the cats sat on the mat", "nothing of it"]
    references = [["The cat sits on a mat, the cat.", "all else"], ["x", "Nothing at all."]]
    found = score(hypotheses, references, metrics=["rouge1", "rougeL", "rouge2"])
    assert [item.name for item in found] == ["ROUGE-1", "ROUGE-L", "ROUGE-2"]
    # Stems: the cat sat on the mat | the cat sit on a mat the cat; nothing of it | nothing at all.
    # 1: the cat on mat the of 6 and 8, nothing of 3 and 3; L: the cat on mat; 2: the-cat.
    firsts = [2 * 5 / (6 + 8), 2 * 4 / (6 + 8), 2 * 1 / (5 + 7)]
    seconds = [1 / 3, 1 / 3, 0.0]
    expected = [50 * (one + two) for one, two in zip(firsts, seconds, strict=True)]
    assert [item.value for item in found] == pytest.approx(expected)
    assert found[0].signature.startswith("nrefs:2|stem:porter|mean:lines|rouge-score:")


def test_rouge_that_is_not_installed_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ConfigError, match=r"metrics=rouge2 needs .*lightconv-mt\[summaries\]"):
        score(["a"], [["a"]], metrics=["bleu", "rouge2"])


def test_line_ends_and_odd_characters_do_not_matter_as_in_the_command(tmp_path: Path) -> None:
    hypotheses = ["a b c d e\r", "eins\u2028zwei drei vier", "\x0b", "f g h i\t", "x\x85y z u v"]
    reference = ["a b c d e", "eins zwei drei vier", "", "f g h i", "x y z u v"]
    expected = command(tmp_path, hypotheses=hypotheses, references=[reference])
    (found,) = score(hypotheses, [reference], metrics=["bleu"])
    assert round(found.value, 2) == expected["score"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a", "b", "c"], [["a", "b"]], r"3 hypotheses do not fit the 2 lines of the reference"),
        (["a"], [["a"], ["b", "c"]], r"1 hypotheses do not fit the 2 lines of reference 2"),
        ([], [[]], "no hypotheses"),
        (["a"], [], "no references"),
    ],
)
def test_what_does_not_fit_is_refused(
    hypotheses: list[str], references: list[list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(hypotheses, references)


def test_unknown_choices_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"\['bleurt'\]; choose from bleu, chrf, ter, rouge1"):
        score(["a"], [["a"]], metrics=["bleu", "bleurt"])
    with pytest.raises(ConfigError, match=r"'moses'; choose from .*13a"):
        score(["a"], [["a"]], tokenize="moses")


def test_japanese_is_scored_by_words_of_mecab_which_spaces_do_not_change() -> None:
    hypothesis, reference = "私はテニス部員です。", "私はテニスの部員です。"
    spaced = "私 は テニス 部員 です 。", "私 は テニス の 部員 です 。"
    (by_words,) = score([hypothesis], [[reference]], metrics=["bleu"], tgt_lang="ja")
    assert "|tok:ja-mecab-0.996-IPA|" in by_words.signature
    (split,) = score([spaced[0]], [[spaced[1]]], metrics=["bleu"], tokenize="none")
    assert by_words.value == pytest.approx(split.value)
    (by_characters,) = score([hypothesis], [[reference]], metrics=["bleu"], tokenize="char")
    assert "|tok:char|" in by_characters.signature and by_characters.value > by_words.value


def test_a_tokenizer_that_is_not_installed_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sacrebleu.tokenizers import tokenizer_ja_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    with pytest.raises(ConfigError, match=r"of 'ja' cannot.*sacrebleu\[ja\].*tokenize=char") as no:
        score(["a"], [["a"]], tgt_lang="ja")
    assert "\n" not in str(no.value)


def test_tokenised_input_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    lines = ["Das ist nicht gut ."] * 100
    with caplog.at_level(logging.INFO):
        score(lines, [lines])
    assert [record.name for record in caplog.records] == ["lightconv_mt.scoring"]
    assert "forgot to detokenize" in caplog.text
    caplog.clear()
    score(lines[:99], [lines[:99]])
    assert not caplog.records


def test_import_is_light() -> None:
    program = "import sys, lightconv_mt.scoring; print({'torch', 'sacrebleu'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


LOAD = """
import json, sys
from lightconv_mt.errors import LcmtError
from lightconv_mt.scoring import load_test_set
try:
    src, references = load_test_set(*sys.argv[1:])
    print(json.dumps([src[:2], [stream[:2] for stream in references], len(src), len(references)]))
except LcmtError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def load_in_fresh_process(cache: Path, *args: str) -> list[object]:
    """Load a test set with SACREBLEU pointing at `cache` and no network."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "SACREBLEU": str(cache)}
    environment.pop("no_proxy", None)
    call = [sys.executable, "-c", LOAD, *args]
    done = subprocess.run(call, capture_output=True, check=True, env=environment)
    assert not done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


@needs_cache
def test_a_filled_cache_is_read_without_network(tmp_path: Path) -> None:
    shutil.copytree(CACHE / "multi30k", tmp_path / "multi30k", copy_function=shutil.copy)
    found = load_in_fresh_process(tmp_path, "multi30k/2016", "en-de")
    assert found == [
        [
            "A man in an orange hat starring at something.",
            "A Boston Terrier is running on lush green grass in front of a white fence.",
        ],
        [
            [
                "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
                "Ein Boston Terrier läuft über saftig-grünes Gras vor einem weißen Zaun.",
            ]
        ],
        1000,
        1,
    ]


def test_an_empty_cache_without_network_gives_one_line(tmp_path: Path) -> None:
    kind, message = load_in_fresh_process(tmp_path, "wmt14/full", "en-de")
    assert kind == "DataError"
    assert isinstance(message, str)
    assert "\n" not in message
    assert str(tmp_path / "wmt14" / "full") in message
    assert "src= and ref=" in message


def test_files_of_a_cache_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "multi30k" / "2016"
    folder.mkdir(parents=True)
    (folder / "multi30k_2016.en-de.src").write_text("a\nb\n")
    (folder / "multi30k_2016.en-de.ref").write_text("a\n")
    kind, message = load_in_fresh_process(tmp_path, "multi30k/2016", "en-de")
    assert kind == "DataError"
    assert "2 source lines but 1 reference lines" in str(message)


def test_unknown_test_sets_and_pairs_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'wmt14/ful'.*did you mean wmt14/full"):
        load_test_set("wmt14/ful", "en-de")
    with pytest.raises(
        ConfigError, match=r"langpair is 'de-ja', but test_set=wmt14/full has .*en-de"
    ):
        load_test_set("wmt14/full", "de-ja")
