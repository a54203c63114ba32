"""lcmt-eval on files: what it prints, writes and refuses; runs are in test_end_to_end."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from lightconv_mt import cli
from lightconv_mt.evaluation import command
from lightconv_mt.scoring import score

REFERENCES = [f"Der Hund Nummer {n} läuft über die Wiese und bellt." for n in range(20)]
FIRST = [line.replace("läuft", "geht") for line in REFERENCES]
SECOND = [line.replace("die Wiese", "Gras") if n % 3 else line for n, line in enumerate(REFERENCES)]
SOURCES = [f"Dog {n}" if n % 2 else f"The dog number {n} runs over it." for n in range(20)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, lines in (("ref", REFERENCES), ("a", FIRST), ("b", SECOND), ("src", SOURCES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """What the command prints."""

    def run(line: str) -> str:
        code = cli.main("eval", shlex.split(line))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """The one line that the command says to what it refuses; nothing is printed else."""

    def run(line: str) -> str:
        assert cli.main("eval", shlex.split(line)) in (2, 3)
        printed = capsys.readouterr()
        assert printed.out == ""
        (error,) = [each for each in printed.err.splitlines() if each.startswith("error: ")]
        return error

    return run


def test_one_system_has_a_line_a_metric(evaluated: Callable[[str], str]) -> None:
    expected = [each.text for each in score(FIRST, [REFERENCES])]
    assert evaluated("hyp=a ref=ref").splitlines() == expected
    assert evaluated("hyp=[a] ref=ref").splitlines() == expected


def test_json_has_a_record_for_each_system_and_metric(
    evaluated: Callable[[str], str], folder: Path
) -> None:
    evaluated("hyp=a ref=ref json=plain.json")
    plain = json.loads((folder / "plain.json").read_text())
    assert [(*each,) for each in plain] == [("name", "score", "signature", "system")] * 3
    assert [each["score"] for each in plain] == [each.value for each in score(FIRST, [REFERENCES])]
    evaluated("hyp=[a,b] ref=ref src=src json=all.json by_length=true worst=2 resamples=100")
    found = json.loads((folder / "all.json").read_text())
    assert [(each["system"], each["name"]) for each in found] == [
        (system, name) for system in "ab" for name in ("BLEU", "chrF2", "TER")
    ]
    assert [each["score"] for each in found[:3]] == [each["score"] for each in plain]
    assert ["p_value" in each for each in found] == [False] * 3 + [True] * 3
    assert {"mean", "interval"} <= set(found[0])
    assert [part["first"] for part in found[0]["by_length"]] == [1, 6]
    assert sum(part["sentences"] for part in found[0]["by_length"]) == 20
    assert found[0]["by_length"][0]["unit"] == "source words"
    # The worst are beside what they were judged by.
    assert ["worst" in each for each in found] == [False, True, False] * 2
    assert len(found[1]["worst"]) == 2
    worst = found[1]["worst"][0]
    assert worst["src"] == SOURCES[worst["line"] - 1]
    assert worst["references"] == [REFERENCES[worst["line"] - 1]]


def test_several_systems_are_a_table_a_metric(evaluated: Callable[[str], str]) -> None:
    printed = evaluated("hyp=[a,b] ref=ref metrics=[bleu,chrf]")
    blocks = [block.splitlines() for block in printed.split("\n\n")]
    assert len(blocks) == 3
    for (title, head, baseline, other), name in zip(blocks[:2], ("BLEU", "chrF2"), strict=True):
        assert title.startswith(f"{name} nrefs:1|bs:1000|seed:12345|")
        assert head.split() == ["system", name, "mean", "±", "95", "%", "p"]
        assert baseline.startswith("a ") and baseline.endswith("baseline")
        assert other.startswith("b ") and float(other.split()[5]) <= 1.0
    assert blocks[2] == [
        "* p < 0.05 against a, paired bootstrap; mean ± 95 % interval by bootstrap"
    ]
    assert "approximate randomization" in evaluated(
        "hyp=[a,b] ref=ref metrics=ter significance=randomization"
    )


def test_a_system_of_equal_score_has_no_star(evaluated: Callable[[str], str], folder: Path) -> None:
    (folder / "same").write_bytes((folder / "a").read_bytes())
    table = evaluated("hyp=[a,same,ref] ref=ref metrics=chrf resamples=100").splitlines()
    assert [line.split()[0] for line in table[3:5]] == ["same", "ref"]
    assert [line.endswith(" *") for line in table[3:5]] == [False, True]


def test_confidence_stands_beside_the_score(evaluated: Callable[[str], str]) -> None:
    printed = evaluated("hyp=a ref=ref metrics=chrf confidence=true resamples=50")
    (expected,) = score(FIRST, [REFERENCES], metrics=["chrf"], resamples=50)
    assert printed == f"{expected.text}\n"
    assert f"(μ = {expected.mean:.2f} ± {expected.interval:.2f})" in printed


def test_lengths_are_the_sources_where_it_is_known(evaluated: Callable[[str], str]) -> None:
    printed = evaluated("hyp=a ref=ref metrics=bleu by_length=true").split("\n\n")[1]
    assert printed.splitlines()[0].split() == ["by", "reference", "words", "sentences", "BLEU"]
    assert printed.splitlines()[1].split()[:2] == ["6-10", "20"]
    printed = evaluated("hyp=a src=src ref=ref metrics=bleu by_length=true").split("\n\n")[1]
    assert [line.split()[:2] for line in printed.splitlines()[1:]] == [
        ["1-5", "10"],
        ["6-10", "10"],
    ]


def test_worst_sentences_are_shown_on_lines_of_their_own(
    evaluated: Callable[[str], str], folder: Path
) -> None:
    FIRST_WORST = ["nichts\rdavon\x85hier", *FIRST[1:]]
    (folder / "a").write_text("".join(f"{line}\n" for line in FIRST_WORST), encoding="utf-8")
    _, printed = evaluated("hyp=a src=src ref=[ref,b] metrics=[bleu,chrf] worst=1").split("\n\n")
    title, line, *sides = printed.splitlines()
    assert title == "worst sentences by chrF2 of the sentence"
    assert line.startswith("line 1, chrF2 = ")
    assert sides == [
        f"  source      {SOURCES[0]}",
        "  hypothesis  nichts davon hier",
        f"  reference   {REFERENCES[0]}",
        f"  reference   {SECOND[0]}",
    ]
    assert "by TER of" in evaluated("hyp=a ref=ref metrics=[ter,bleu] worst=1")


def test_a_sweep_takes_lists_without_brackets(evaluated: Callable[[str], str]) -> None:
    printed = evaluated("--multirun hyp=a,b ref=ref metrics=bleu")
    assert printed == evaluated("hyp=a ref=ref metrics=bleu") + evaluated(
        "hyp=b ref=ref metrics=bleu"
    )


@pytest.mark.parametrize("where", ["hyp", "ref"])
def test_tokenised_input_is_refused_unless_let_through(
    refused: Callable[[str], str], evaluated: Callable[[str], str], folder: Path, where: str
) -> None:
    (folder / "tok").write_text("".join(f"{line[:-1]} .\n" for line in REFERENCES))
    line = "hyp=tok ref=ref metrics=ter" if where == "hyp" else "hyp=a ref=[ref,tok] metrics=ter"
    assert refused(line) == (
        "error: tok looks tokenised: spaces before full stops or commas in 20 of 20 lines, first "
        "in line 1; detokenise it, or let it through with allow_tokenized=true"
    )
    assert evaluated(f"{line} allow_tokenized=true").startswith("TER = ")


def test_line_counts_that_differ_are_refused_with_both_paths(
    refused: Callable[[str], str], folder: Path
) -> None:
    (folder / "short").write_text("eins\nzwei\n")
    assert "short has 2 lines but ref has 20;" in refused("hyp=short ref=ref")
    assert "short has 2 lines but ref has 20;" in refused("hyp=[a,short] ref=ref")
    assert "ref has 20 lines but short has 2;" in refused("hyp=a ref=[ref,short]")
    assert "short has 2 lines but ref has 20;" in refused("hyp=a src=short ref=ref")


def test_what_cannot_be_written_is_said_before_the_work(refused: Callable[[str], str]) -> None:
    message = "cannot write none/x: there is no folder none; make it first"
    assert message in refused("hyp=a ref=ref json=none/x")
    assert message in refused("run_dir=nowhere output=none/x")
    assert "cannot write .: it is no file; choose another" in refused("hyp=a ref=ref json=.")


def test_what_is_read_is_not_written_over(refused: Callable[[str], str], folder: Path) -> None:
    (folder / "link").symlink_to("ref")
    assert "json=link would overwrite ref=ref; give json" in refused("hyp=a ref=ref json=link")
    assert "json=ref would overwrite ref=link; give json" in refused("hyp=a ref=link json=ref")
    assert (folder / "ref").read_text(encoding="utf-8").splitlines() == REFERENCES


def test_a_tokenizer_that_does_not_exist_is_said_before_the_work(
    refused: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "read_systems", Mock(side_effect=AssertionError))
    assert "tokenize is 'foo'; choose from" in refused("hyp=a ref=ref tokenize=foo")
