"""Intervals and p-values equal the sacrebleu command's, digit by digit."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.scoring import build_metrics, score
from lightconv_mt.significance import check_seed, compare
from tests.conftest import SHARED

DIGITS = 4
WORDS = "ein kleiner Hund läuft über die grüne Wiese und zwei Männer sehen ihm dabei zu"
COMMAND = ["-m", "bleu", "chrf", "ter", "-w", str(DIGITS)]


def noisy(lines: list[str], share: float, seed: int) -> list[str]:
    """A system's output: some words are lost, some others come in."""
    rng, words = random.Random(seed), WORDS.split()
    return [
        " ".join(
            rng.choice(words) if rng.random() < share else word
            for word in line.split()
            if rng.random() > share / 2
        )
        for line in lines
    ]


def generated() -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS.split(), k=rng.randint(3, 16))) + "." for _ in range(80)]


def real() -> list[str]:
    path = SHARED / "data" / "wmt13" / "newstest2013.en-de.de.gz"
    if not path.is_file():
        pytest.skip(f"the news test set is not here: {path}")
    from lightconv_mt.data.lines import read_lines

    return list(read_lines(path))[:150]


def command(folder: Path, references: list[str], systems: list[list[str]], *words: str) -> str:
    """What `sacrebleu` prints."""
    for name, lines in zip(["ref", "one", "two"], [references, *systems], strict=False):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = ["one", "two"][: len(systems)]
    call = [sys.executable, "-m", "sacrebleu", "ref", "-i", *names, *COMMAND, *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, check=True)
    return re.sub(r"\x1b\[\d*m", "", done.stdout.decode())


@pytest.mark.parametrize("text", [generated, real])
def test_intervals_equal_the_commands(tmp_path: Path, text: object) -> None:
    references = text()  # type: ignore[operator]
    hypotheses = noisy(references, 0.3, seed=2)
    printed = command(tmp_path, references, [hypotheses], "--confidence", "-f", "text")
    expected = re.findall(r"(\w+)\|(\S+) = ([\d.]+) \(μ = ([\d.]+) ± ([\d.]+)\)", printed)
    found = score(hypotheses, [references], resamples=1000)
    assert [
        (
            each.name,
            each.signature,
            *(f"{value:.{DIGITS}f}" for value in (each.value, each.mean, each.interval)),
        )
        for each in found
    ] == expected
    assert len(expected) == 3
    assert 10.0 < found[0].value < 90.0


@pytest.mark.parametrize("text", [generated, real])
@pytest.mark.parametrize("randomization", [False, True])
def test_comparisons_equal_the_commands(tmp_path: Path, text: object, randomization: bool) -> None:
    references = text()  # type: ignore[operator]
    systems = [noisy(references, 0.30, seed=2), noisy(references, 0.25, seed=3)]
    flag = "--paired-ar" if randomization else "--paired-bs"
    printed = command(tmp_path, references, systems, flag, "-f", "latex")
    rows = [line for line in printed.splitlines() if "&" in line][1:]
    expected = [re.findall(r"\d+\.\d{4}", cell) for row in rows for cell in row.split("&")[1:]]
    found = compare(
        systems,
        [references],
        build_metrics(["bleu", "chrf", "ter"]),
        randomization=randomization,
    )
    assert len(expected) == 6
    # Beside randomization, the command gives no intervals.
    assert [
        [
            f"{value:.4f}"
            for value in (
                (each.value, each.p_value)
                if randomization
                else (each.value, each.mean, each.interval, each.p_value)
            )
            if value is not None
        ]
        for scores in found
        for each in scores
    ] == expected
    assert found[0][0].p_value is None
    first, second = found[0][0], found[1][0]
    assert first.value < second.value
    assert ("|ar:10000|" if randomization else "|bs:1000|") in second.signature


def test_the_same_output_twice_is_no_difference() -> None:
    references = generated()
    hypotheses = noisy(references, 0.3, seed=2)
    _, (found,) = compare([hypotheses, hypotheses], [references], build_metrics(["bleu"]))
    assert found.p_value == 1.0 / 1001.0 or found.p_value == 1.0
    alone = score(hypotheses, [references], metrics=["bleu"], resamples=1000)[0]
    assert (found.value, found.mean, found.interval) == (
        alone.value,
        pytest.approx(alone.mean),
        pytest.approx(alone.interval),
    )


def test_rouge_and_the_papers_scale_have_intervals_and_p_values_too() -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacremoses")
    from lightconv_mt.paper_scoring import paper_metrics

    references = generated()
    systems = [noisy(references, 0.5, seed=2), noisy(references, 0.1, seed=3)]
    metrics = [*build_metrics(["rouge1", "rougeL"]), *paper_metrics("de")]
    baseline, better = compare(systems, [references], metrics, resamples=200)
    names = ["ROUGE-1", "ROUGE-L", "tokenised BLEU", "compound-split BLEU"]
    assert [each.name for each in better] == names
    for first, second in zip(baseline, better, strict=True):
        assert second.value > first.value + 10.0
        assert second.mean == pytest.approx(second.value, abs=2.0)
        assert second.interval is not None and 0.0 < second.interval < 10.0
        assert second.p_value is not None and second.p_value < 0.05
        assert "|bs:200|seed:12345|" in second.signature
    # Words without hyphens or commas inside are the same words with compounds split.
    assert better[2].value == better[3].value


def test_line_counts_and_single_systems_are_refused() -> None:
    metrics = build_metrics(["bleu"])
    with pytest.raises(DataError, match="1 hypotheses do not fit the 2 lines"):
        compare([["a", "b"], ["a"]], [["a", "b"]], metrics)
    with pytest.raises(DataError, match="give two or more to compare"):
        compare([["a"]], [["a"]], metrics)


def test_the_seed_is_sacrebleus_own(monkeypatch: pytest.MonkeyPatch) -> None:
    references = generated()
    hypotheses = noisy(references, 0.3, seed=2)
    means = []
    for seed in ("12345", "7"):
        monkeypatch.setenv("SACREBLEU_SEED", seed)
        check_seed()
        (found,) = score(hypotheses, [references], metrics=["bleu"], resamples=100)
        assert f"|bs:100|seed:{seed}|" in found.signature
        means.append(found.mean)
    assert means[0] != means[1]
    for wrong in ("", "1.5", "-3", "random"):
        monkeypatch.setenv("SACREBLEU_SEED", wrong)
        with pytest.raises(ConfigError, match=r"SACREBLEU_SEED is .*; set a whole number"):
            check_seed()
