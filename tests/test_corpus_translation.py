"""A file is translated once, whole and in order, whoever is killed, and however often."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from children import exit_code, start
from deaths import KILLED, die_at_change
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrun import torchrun
from toy_run import WORDS, write_toy_run

from lightconv_mt import corpus_translation
from lightconv_mt.config import Device, NbestFormat, RuntimeConfig, TranslateConfig
from lightconv_mt.corpus_translation import translate
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.long_lines import LongLines, join_texts
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.ops import Backend
from lightconv_mt.run_folder import lock_run
from lightconv_mt.translation import open_translator, translate_stream

# Started in place of lcmt-translate: process 1 kills itself with its second chunk, the first time.
FAULTY = """
import os, signal, sys
from lightconv_mt import corpus_translation
from lightconv_mt.cli import translate

original, made = corpus_translation._translate_chunk, []

def translate_chunk(*arguments):
    made.append(1)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and len(made) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

corpus_translation._translate_chunk = translate_chunk
sys.exit(translate())
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy") / "run", mixer="dynamicconv")


@pytest.fixture
def config(run_dir: Path, tmp_path: Path) -> TranslateConfig:
    """Of some odd and many usual lines in chunks of three."""
    generator = random.Random(1)
    lines = [
        " ".join(generator.choices(WORDS, k=generator.randint(0, 9))).encode() for _ in range(50)
    ]
    lines[3:5] = [b"\xffba\x00de\r", b"ba de. " * 40]
    (tmp_path / "in").write_bytes(b"\n".join(lines))  # without a final newline
    return TranslateConfig(
        run_dir=[str(run_dir)],
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        chunk_lines=3,
        max_source_tokens=50,
        decode=DecodeConfig(beam_size=2, max_length=6),
        runtime=RuntimeConfig(device=Device.cpu, kernels=Backend.auto, threads=1),
    )


def translated(config: TranslateConfig, name: str, **values: Any) -> bytes:
    """What one process makes of the input, left alone, by way of a stream."""
    output = Path(str(config.output)).with_name(name)
    translate_stream(replace(config, output=str(output), **values))
    return output.read_bytes()


def output_of(config: TranslateConfig) -> bytes:
    return Path(str(config.output)).read_bytes()


def folder_of(config: TranslateConfig) -> Path:
    return Path(f"{config.output}.chunks")


def is_finished(config: TranslateConfig) -> bool:
    return Path(str(config.output)).exists() and not folder_of(config).exists()


def test_chunk_by_chunk_gives_what_a_stream_gives(
    config: TranslateConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kinds: list[dict[str, Any]] = [
        {},
        {
            "decode": DecodeConfig(beam_size=3, nbest=2, max_length=6, sampling=True),
            "nbest_format": NbestFormat.tsv,
        },
        {"nbest_format": NbestFormat.jsonl, "prefix": str(tmp_path / "prefix")},
    ]
    (tmp_path / "prefix").write_text("go hu\n\n" * 25)
    for number, values in enumerate(kinds):
        links = {"alignments": str(tmp_path / f"links{number}")}
        expected = translated(config, f"stream{number}", **values, **links)
        said = caplog.messages[-1]
        wanted = Path(links["alignments"]).read_bytes()
        one = replace(
            config, **values, output=str(tmp_path / f"out{number}"), alignments=f"{tmp_path}/linked"
        )
        assert translate(one) == 0
        assert output_of(one) == expected
        assert (tmp_path / "linked").read_bytes() == wanted
        assert caplog.messages[-1] == said
        assert not folder_of(one).exists()
        (tmp_path / "linked").unlink()
    assert "lines 50, empty " in said and "bad utf8 1, in parts 1" in said


def test_an_empty_input_has_an_empty_output(config: TranslateConfig) -> None:
    Path(str(config.input)).write_bytes(b"")
    assert translate(config) == 0
    assert output_of(config) == b""


def test_any_bytes_at_all(
    config: TranslateConfig, thorough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, overwrite=True)
    translator = open_translator(config)
    monkeypatch.setattr(corpus_translation, "open_translator", lambda config: translator)

    @settings(
        max_examples=2_000 if thorough else 60,
        deadline=None,
        derandomize=not thorough,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=st.lists(st.binary(max_size=30), max_size=9), final=st.booleans())
    def check(content: list[bytes], final: bool) -> None:
        joined = b"\n".join(content) + (b"\n" if final else b"")
        Path(str(config.input)).write_bytes(joined)
        if joined.startswith(b"\x1f\x8b"):
            return  # it says that it is gzipped
        assert translate(config) == 0
        lines = joined.count(b"\n") + (not joined.endswith(b"\n") and bool(joined))
        assert output_of(config).count(b"\n") == lines

    check()


@pytest.mark.timeout(3600)
def test_kills_at_random_moments_lose_and_repeat_no_line(
    config: TranslateConfig, thorough: bool, figure: Callable[[str, str], None]
) -> None:
    expected = translated(config, "straight")
    child = start(partial(translate, config))
    began = time.monotonic()
    assert exit_code(child) == 0
    usual = time.monotonic() - began
    assert output_of(config) == expected
    seed, kills, wanted = 11, 0, 200 if thorough else 20
    generator = random.Random(seed)
    for run in itertools.count():
        one = replace(config, output=f"{config.output}{run}")
        while not is_finished(one):
            child = start(partial(translate, one))
            if kills < wanted:
                child.join(generator.uniform(0.0, 0.8 * usual))
                child.kill()
            code = exit_code(child)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert output_of(one) == expected, (seed, run)
        if kills >= wanted:
            break
    figure(
        "kill -9 of lcmt-translate at a random moment, then the same command again",
        f"{kills} times over {run + 1} files, 0 bytes different at the end (seed {seed})",
    )


@pytest.mark.timeout(3600)
def test_a_death_at_any_change_to_the_disk_loses_and_repeats_no_line(
    config: TranslateConfig, tmp_path: Path
) -> None:
    Path(str(config.input)).write_bytes(b"ba de\nfi go\n\nhu ka\nle\n")
    links = tmp_path / "links"
    expected = translated(config, "straight", alignments=str(links))
    for change in itertools.count():
        one = replace(config, output=f"{config.output}{change}", alignments=f"{links}{change}")
        code = exit_code(start(partial(die_at_change, change), partial(translate, one)))
        if code == 0:
            break
        assert code == KILLED
        if not is_finished(one):
            assert exit_code(start(partial(translate, one))) == 0
        assert is_finished(one)
        assert output_of(one) == expected, change
        assert Path(str(one.alignments)).read_bytes() == links.read_bytes(), change
    assert change > 25
    # What was left behind by the last of them goes when their output is asked for again.
    assert list(tmp_path.glob(".*.tmp-*"))
    for number in range(change):
        with pytest.raises(ConfigError, match="exists"):
            translate(replace(config, output=f"{config.output}{number}"))
    assert not list(tmp_path.glob(".*"))


class Interrupted(Exception):
    """Stands for a death in the middle."""


def interrupt(config: TranslateConfig, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Translate some chunks and stop."""
    original, made = Translator.translate, itertools.count()

    def failing(self: Translator, *arguments: Any, **options: Any) -> Any:
        if next(made) == after:
            raise Interrupted
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Translator, "translate", failing)
        translate(config)


def test_what_is_done_is_not_done_again(
    config: TranslateConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    expected = translated(config, "straight")
    interrupt(config, monkeypatch, after=5)
    interrupt(config, monkeypatch, after=3)
    lines: list[str] = []
    original = Translator.translate
    monkeypatch.setattr(
        Translator,
        "translate",
        lambda self, some, *rest, **more: lines.extend(some) or original(self, some, *rest, **more),
    )
    assert translate(config) == 0
    assert len(lines) == 50 - 8 * config.chunk_lines
    assert "going on after 24 lines that are done" in caplog.text
    assert output_of(config) == expected


def changed_input(config: TranslateConfig, tmp_path: Path) -> TranslateConfig:
    (tmp_path / "other").write_bytes(b"ba\n" + Path(str(config.input)).read_bytes())
    return replace(config, input=str(tmp_path / "other"))


def test_it_goes_on_with_the_same_settings_only(
    config: TranslateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(config, monkeypatch, after=2)
    decode = replace(config.decode, beam_size=3)
    (tmp_path / "other").write_bytes(b"ba\n" + Path(str(config.input)).read_bytes())
    changes: list[tuple[dict[str, Any], str]] = [
        (
            {"decode": decode},
            r"decode\.beam_size=2, not 3; repeat its command, or choose another output, or remove",
        ),
        ({"chunk_lines": 4}, "chunk_lines=3, not 4"),
        ({"input": str(tmp_path / "other")}, r"sha256\.input=\w+, not \w+"),
        ({"run_dir": [str(write_toy_run(tmp_path / "two"))]}, r"sha256\.model=\['\w+'\], not"),
        ({"alignments": str(tmp_path / "links")}, "files_written=1, not 2"),
    ]
    for values, message in changes:
        with pytest.raises(ConfigError, match=rf"out\.chunks was started with {message}"):
            translate(replace(config, **values))
    weighted = {"decode": replace(config.decode, channel_weight=0.2), "channel": config.run_dir}
    with pytest.raises(
        ConfigError, match=r"was started with decode\.channel_weight=0\.0, not 0\.2"
    ):
        translate(replace(config, **weighted))
    # Where things lie, and what decides no output, is no such setting.
    os.rename(str(config.input), tmp_path / "moved")
    runtime = replace(config.runtime, keep_memory=False)
    assert translate(replace(config, input=str(tmp_path / "moved"), runtime=runtime)) == 0
    assert output_of(config).count(b"\n") == 50


def test_it_goes_on_with_the_same_channel_only(
    config: TranslateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(write_toy_run(tmp_path / "other"))
    decode = replace(config.decode, channel_weight=0.2)
    config = replace(config, channel=config.run_dir, decode=decode)
    interrupt(config, monkeypatch, after=2)
    with pytest.raises(ConfigError, match=r"sha256\.channel=\['\w+'\], not"):
        translate(replace(config, channel=[other]))
    moved = tmp_path / "moved"
    moved.symlink_to(config.channel[0])
    assert translate(replace(config, channel=[str(moved)])) == 0
    assert output_of(config) == translated(config, "straight")


def test_an_output_that_came_from_elsewhere_stays(
    config: TranslateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = translated(config, "straight")
    interrupt(config, monkeypatch, after=2)
    Path(str(config.output)).write_text("precious\n")
    with pytest.raises(ConfigError, match="exists; choose another one, or set overwrite=true"):
        translate(config)
    assert output_of(config) == b"precious\n"
    assert translate(replace(config, overwrite=True)) == 0
    assert output_of(config) == expected
    with pytest.raises(ConfigError, match="exists"):
        translate(config)


def test_an_older_output_that_begins_like_the_new_one_is_not_taken_for_it(
    config: TranslateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = translated(config, "straight")
    config = replace(config, overwrite=True)
    done = 2 * config.chunk_lines
    Path(str(config.output)).write_bytes(b"".join(expected.splitlines(keepends=True)[:done]))
    interrupt(config, monkeypatch, after=2)
    assert translate(config) == 0
    assert output_of(config) == expected


def test_an_older_output_does_not_stand_for_alignments_that_are_missing(
    config: TranslateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert translate(config) == 0
    config = replace(config, alignments=str(tmp_path / "links"), overwrite=True)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(corpus_translation, "join_chunks", Mock(side_effect=Interrupted))
        translate(config)
    assert translate(config) == 0
    assert (tmp_path / "links").read_bytes().count(b"\n") == 50


def test_what_cannot_work_is_refused_at_once(config: TranslateConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/null is no file"):
        translate(replace(config, output="/dev/null"))
    with pytest.raises(DataError, match="there is no folder"):
        translate(replace(config, output=str(tmp_path / "no" / "out")))
    with pytest.raises(DataError, match="cannot read /none: there is no such file"):
        translate(replace(config, input="/none"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is no file, and is read several times; write it"):
        translate(replace(config, prefix=str(tmp_path / "pipe")))


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_chunks_of_unknown_settings_are_not_gone_on_with(
    config: TranslateConfig, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    interrupt(config, monkeypatch, after=2)
    started = folder_of(config) / "started.json"
    started.unlink()
    if text is not None:
        started.write_text(text)
    with pytest.raises(DataError, match=r"started\.json is damaged; remove .*out\.chunks"):
        translate(config)


def test_a_command_that_came_to_no_chunk_can_be_corrected(config: TranslateConfig) -> None:
    decode = replace(config.decode, alignments=True, attention_layer=99)
    with pytest.raises(ConfigError, match="attention_layer"):
        translate(replace(config, decode=decode, nbest_format=NbestFormat.jsonl))
    assert translate(config) == 0
    assert output_of(config) == translated(config, "straight")


def test_a_folder_has_one_command_at_a_time(config: TranslateConfig) -> None:
    with (
        lock_run(folder_of(config), key="output", work="written"),
        pytest.raises(ConfigError, match=r"out\.chunks is being written by process \d+ on"),
    ):
        translate(config)


@pytest.mark.parametrize(
    ("cut_in_training", "wanted", "found"),
    [
        (None, None, LongLines.split),
        (20, None, LongLines.truncate),
        (20, LongLines.split, LongLines.split),
        (None, LongLines.truncate, LongLines.truncate),
    ],
)
def test_long_lines_are_truncated_where_training_did(
    config: TranslateConfig,
    tmp_path: Path,
    cut_in_training: int | None,
    wanted: LongLines | None,
    found: LongLines,
) -> None:
    run_dir = write_toy_run(tmp_path / "other", truncate_source=cut_in_training)
    one = replace(config, run_dir=[str(run_dir)], long_lines=wanted)
    assert open_translator(one).long_lines is found


def test_a_line_in_parts_has_the_texts_scores_and_links_of_its_parts(
    config: TranslateConfig,
) -> None:
    translator = open_translator(config)
    sentences = ["ba de.", "fi go hu!", "ka le mi no?"] * 12
    search = replace(config.decode, alignments=True, nbest=2)
    whole, other = translator.translate([" ".join(sentences), "ba"], search)
    parts = translator.translate(sentences, search)
    assert other.text == translator.translate(["ba"], search)[0].text
    assert whole.text == join_texts([part.text for part in parts])
    assert whole.score == pytest.approx(sum(part.score for part in parts))
    assert len(whole.nbest) == 2
    links, before, made = [], 0, 0
    for sentence, part in zip(sentences, parts, strict=True):
        assert part.alignment is not None
        links += [(source + before, output + made) for source, output in part.alignment]
        before, made = before + len(sentence.split()), made + len(part.text.split())
    assert whole.alignment == tuple(links)
    assert len(links) > len(sentences)


def test_several_processes_need_files(
    config: TranslateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="give input=FILE and output=FILE"):
        translate(replace(config, input=None))


@pytest.fixture
def words(config: TranslateConfig) -> Iterator[list[str]]:
    """The same as a command."""
    yield [
        *(f"run_dir={config.run_dir[0]}", f"input={config.input}", f"output={config.output}"),
        *("chunk_lines=3", "max_source_tokens=50", "decode.beam_size=2", "decode.max_length=6"),
        *("runtime=cpu", "runtime.kernels=auto", "runtime.threads=1"),
    ]


def run(words: list[str], script: Path, *, processes: int, restarts: int) -> tuple[int, str]:
    count = (f"--nproc-per-node={processes}", f"--max-restarts={restarts}")
    done = subprocess.run(
        [sys.executable, *torchrun(), *count, str(script), *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


def test_processes_share_a_file_and_one_that_dies_is_made_up_for(
    config: TranslateConfig, words: list[str], tmp_path: Path
) -> None:
    expected = translated(config, "straight")
    (tmp_path / "faulty.py").write_text(FAULTY)
    # Restarted by torchrun.
    code, said = run(words, tmp_path / "faulty.py", processes=2, restarts=1)
    assert code == 0, said
    assert "exitcode: -9" in said
    assert "going on after " in said
    assert output_of(config) == expected
    assert not folder_of(config).exists()
    # Not restarted: one process alone goes on.
    os.unlink(str(config.output))
    code, said = run(words, tmp_path / "faulty.py", processes=2, restarts=0)
    assert code != 0
    numbers = [
        [json.loads(entry)["number"] for entry in path.read_text().splitlines()]
        for path in sorted(folder_of(config).glob("*.jsonl"))
    ]
    assert numbers[1] == [1]
    assert set(numbers[0]) <= set(range(0, 17, 2))
    assert not Path(str(config.output)).exists()
    assert translate(config) == 0
    assert output_of(config) == expected
