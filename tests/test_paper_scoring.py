"""The paper's scale against counts by hand, a second computation, and Perl."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from math import exp, log
from pathlib import Path

import pytest

from lightconv_mt import cli
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.paper_scoring import paper_metrics, split_compounds
from lightconv_mt.scoring import Score, score_by

pytest.importorskip("sacremoses")

Tokens = list[list[str]]
HYPOTHESIS = "Der gut-bekannte Hund läuft heute nicht."
REFERENCE = "Der gut-bekannte Hund läuft nicht."


def bleu(hypotheses: Tokens, references: list[Tokens]) -> float:
    """Corpus BLEU without smoothing, counted anew: Papineni et al. (2002), section 2.3."""
    precisions = []
    for order in range(1, 5):
        hits = total = 0
        for number, tokens in enumerate(hypotheses):
            found = Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
            best: Counter[tuple[str, ...]] = Counter()
            for stream in references:
                best |= Counter(zip(*(stream[number][s:] for s in range(order)), strict=False))
            hits += sum((found & best).values())
            total += found.total()
        if not hits:
            return 0.0
        precisions.append(log(hits / total))
    length = sum(map(len, hypotheses))
    nearest = sum(
        min((len(stream[number]) for stream in references), key=lambda n: (abs(n - len(hyp)), n))
        for number, hyp in enumerate(hypotheses)
    )
    return 100.0 * exp(min(0.0, 1.0 - nearest / length) + sum(precisions) / 4)


def words(line: str) -> list[str]:
    """What Moses makes of lines of these tests."""
    return re.sub(r"([,.!?])(?= |$)", r" \1", line).split()


def compounds(tokens: list[str]) -> list[str]:
    """Split hyphens, character by character; a letter between two of them takes part once."""
    line, out, place = " ".join(tokens), "", 0
    while place < len(line):
        inside = place + 2 < len(line) and line[place + 1] == "-"
        if inside and not line[place].isspace() and not line[place + 2].isspace():
            out += f"{line[place]} ##AT##-##AT## {line[place + 2]}"
            place += 3
        else:
            out += line[place]
            place += 1
    return out.split()


def paper_scores(
    hypotheses: list[str], references: list[list[str]], *, lowercase: bool = False
) -> list[Score]:
    return score_by(paper_metrics("de", lowercase=lowercase), hypotheses, references)


def corpus(lines: int, seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    vocabulary = ["ein", "gut-bekannter", "Hund", "Nord-Ost-Wind", "a-b-c", "--", "x-", "sehr"]
    streams: list[list[str]] = [[], [], []]
    for _ in range(lines):
        sentence = rng.choices(vocabulary, k=rng.randint(4, 14))
        for stream in streams:
            noisy = [rng.choice(vocabulary) if rng.random() < 0.15 else w for w in sentence]
            stream.append(f"{' '.join(noisy)}, {rng.choice(vocabulary)}.")
    return streams


def test_figures_counted_by_hand() -> None:
    kept, split = paper_scores([HYPOTHESIS], [[REFERENCE]])
    # Der gut-bekannte Hund läuft [heute] nicht .
    assert kept.value == pytest.approx(100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    # Der gut ##AT##-##AT## bekannte Hund läuft [heute] nicht .
    assert split.value == pytest.approx(100 * (8 / 9 * 6 / 8 * 4 / 7 * 3 / 6) ** 0.25)
    short = paper_scores(["Der gut-bekannte Hund läuft."], [[HYPOTHESIS]])
    # Der gut-bekannte Hund läuft . against 7 words
    assert short[0].value == pytest.approx(
        100 * exp(1 - 7 / 5) * (5 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )


@pytest.mark.parametrize("num_references", [1, 2])
@pytest.mark.parametrize("lowercase", [False, True])
def test_figures_counted_anew(num_references: int, lowercase: bool) -> None:
    hypotheses, *references = corpus(60, seed=num_references)
    references = references[:num_references]
    if lowercase:
        hypotheses = [line.upper() for line in hypotheses]
    found = paper_scores(hypotheses, references, lowercase=lowercase)
    streams = [
        [words(line.lower() if lowercase else line) for line in stream]
        for stream in (hypotheses, *references)
    ]
    expected = bleu(streams[0], streams[1:])
    assert found[0].value == pytest.approx(expected)
    assert 20 < expected < 90
    streams = [[*map(compounds, stream)] for stream in streams]
    assert found[1].value == pytest.approx(bleu(streams[0], streams[1:]))
    assert found[1].value > found[0].value + 1


def test_nothing_is_smoothed() -> None:
    scores = paper_scores(["ein Hund läuft"], [["ein Hund geht"]])
    assert [score.value for score in scores] == [0.0, 0.0]


def test_labels_keep_the_scales_apart() -> None:
    kept, split = paper_scores([HYPOTHESIS], [[REFERENCE]], lowercase=True)
    assert (kept.name, split.name) == ("tokenised BLEU", "compound-split BLEU")
    assert "nrefs:1|case:lc|eff:no|tok:none|smooth:none|" in kept.signature
    assert re.search(r"\|words:moses-de-sacremoses-[\d.]+\|compounds:kept$", kept.signature)
    assert split.signature == kept.signature.replace("kept", "split")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gut-bekannt", "gut ##AT##-##AT## bekannt"),
        ("ein - zwei", "ein - zwei"),
        ("a-b-c", "a ##AT##-##AT## b-c"),
        ("aa-bb-cc", "aa ##AT##-##AT## bb ##AT##-##AT## cc"),
        ("-a b- --", "-a b- --"),
        ("---", "- ##AT##-##AT## -"),
    ],
)
def test_compounds_by_hand(line: str, expected: str) -> None:
    assert split_compounds(line) == expected
    assert " ".join(compounds(line.split())) == expected


@pytest.mark.skipif(shutil.which("perl") is None, reason="there is no Perl here")
def test_compounds_as_perl_splits_them() -> None:
    rng = random.Random(1)
    lines = ["".join(rng.choices("ab-- \u00a0\u2028ü", k=30)) for _ in range(500)]
    program = "s{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g"
    done = subprocess.run(
        ["perl", "-CSD", "-ple", f"use re '/aa'; {program}"],
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().split("\n")[:-1] == [*map(split_compounds, lines)]


def test_what_cannot_be_scored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="2 hypotheses do not fit the 1 lines"):
        paper_scores(["a", "b"], [["a"]])
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ConfigError, match=r"needs sacremoses; pip install 'lightconv-mt\[paper\]'"):
        paper_scores(["a"], [["a"]])


def test_the_command_prints_both_scales(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hypotheses, references, _ = corpus(30, seed=3)
    for name, stream in (("hyp", hypotheses), ("ref", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in stream))
    line = [f"hyp={tmp_path / 'hyp'}", f"ref={tmp_path / 'ref'}", "metrics=bleu"]
    asked = [*line, "paper_scoring=true", "langpair=en-de", f"json={tmp_path / 'scores.json'}"]
    assert cli.main("eval", asked) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [text.split(" = ")[0] for text in printed] == [
        *("BLEU", "tokenised BLEU", "compound-split BLEU"),
    ]
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert [entry["name"] for entry in kept] == [text.split(" = ")[0] for text in printed]
    assert len({entry["signature"] for entry in kept}) == 3
    assert ["tok:13a" in entry["signature"] for entry in kept] == [True, False, False]
    assert cli.main("eval", line) == 0
    assert capsys.readouterr().out.splitlines() == printed[:1]
    assert cli.main("eval", asked[:-2]) == 2
    assert "give langpair, such as langpair=en-de" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    assert cli.main("eval", asked) == 2
    assert "pip install 'lightconv-mt[paper]'" in capsys.readouterr().err
