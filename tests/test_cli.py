"""The commands as a user types them: exit codes, one line of error, clean output."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightconv_mt import cli
from lightconv_mt.scoring import score

Run = subprocess.CompletedProcess[bytes]

SHORT = ("decode=greedy", "decode.max_length=5")  # an untrained model does not stop by itself
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
# As a console script does it.
PROGRAM = "import sys; from lightconv_mt.cli import main; sys.exit(main(sys.argv[1], sys.argv[2:]))"
# The same, and a word on what was imported.
CONFESSING = PROGRAM.replace(
    "sys.exit(main(sys.argv[1], sys.argv[2:]))",
    "code = main(sys.argv[1], sys.argv[2:]); "
    "sys.stderr.write('TORCH' if 'torch' in sys.modules else 'FREE'); sys.exit(code)",
)


def command(*words: str, stdin: bytes = b"", program: str = PROGRAM, **environment: str) -> Run:
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, count in (("train", 400), ("valid", 10)):
        lines = [
            f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} {WORDS[i // 64 % 8]} {i}" for i in range(count)
        ]
        (folder / f"{name}.x").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{name}.y").write_text("".join(f"{line.upper()}\n" for line in lines))
    return folder


def training(corpus: Path, run_dir: Path, *words: str) -> list[str]:
    return [
        "train",
        f"run_dir={run_dir}",
        "model=tiny",
        "data=text",
        *(f"data.{key}" for key in ("src_lang=x", "tgt_lang=y")),
        *(
            f"data.train.main.{side}={corpus / 'train'}.{end}"
            for side, end in (("src", "x"), ("tgt", "y"))
        ),
        *(
            f"data.valid.{side}={corpus / 'valid'}.{end}"
            for side, end in (("src", "x"), ("tgt", "y"))
        ),
        f"data.cache_dir={corpus / 'cache'}",
        "tokenizer.vocab_size=320",
        "batch.max_tokens=512",
        "batch.max_length=64",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "model.mixer.encoder_kernel_sizes=[3]",
        "model.mixer.decoder_kernel_sizes=[3]",
        "decode=greedy",
        *words,
    ]


@pytest.fixture(scope="module")
def run_dir(corpus: Path) -> Path:
    folder = corpus / "run, with = signs"
    done = command(*training(corpus, folder, "train.max_steps=2"))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    return folder


@pytest.mark.parametrize("name", cli.ROOTS)
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--cfg", "job"], ["nonsense=1"]])
def test_answers_about_configurations_come_without_torch(name: str, words: list[str]) -> None:
    chosen = ["data=text"] if name == "prepare" else []  # the others have a corpus, or need none
    done = command(name, *chosen, *words, program=CONFESSING)
    if words == ["nonsense=1"]:
        assert done.returncode == 2
        assert done.stderr.decode().startswith("error: there is no key nonsense;")
        assert done.stderr.count(b"\n") == 1
    else:
        assert done.returncode == 0
        assert done.stdout
    assert done.stderr.endswith(b"FREE")


def test_a_whole_run_imports_torch() -> None:
    """Or the test above could not fail."""
    assert command("translate", "run_dir=/none", program=CONFESSING).stderr.endswith(b"TORCH")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train"], 2, "no value for run_dir"),
        (["translate", "run_dir=/none"], 4, "/none is no run folder"),
        (["eval", "hyp=/none/h", "ref=/none/r"], 3, "cannot read /none/"),
        (["train", "experiment=demo", "runtime.device=cuda", "run_dir=/none/x"], 2, "sees no GPU"),
        (["train", "experiment=demo", "run_dir=/proc/x"], 2, "cannot write run_dir=/proc/x"),
        (["train", "experiment=demo", "data.src_lang=xx", "run_dir={tmp}"], 3, "no locale 'xx'"),
    ],
)
def test_each_kind_of_mistake_has_its_code_and_one_line(
    words: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cli.main(words[0], [word.replace("{tmp}", str(tmp_path)) for word in words[1:]])
    err = capsys.readouterr().err
    assert (found, err.count("error: ")) == (code, 1), err
    assert message in err.splitlines()[-1]


def test_a_defect_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: str, arguments: list[str]) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr(cli, "_compose_and_run", fail)
    assert cli.main("train", []) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 50), lambda: bytearray(1 << 50)])
def test_too_little_memory_anywhere_has_its_code_and_one_line(
    allocate: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "_compose_and_run", lambda command, arguments: allocate())
    assert cli.main("train", []) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: (can't allocate memory: .* \d{16} bytes|no memory).*; free some", line)


def test_a_filter_prints_its_lines_and_nothing_else(run_dir: Path) -> None:
    done = command("translate", f"run_dir={run_dir}", *SHORT, stdin=b"alpha\n\n\xff beta\r\ngamma")
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 4
    assert done.stdout.split(b"\n")[1] == b""
    assert command("translate", f"run_dir={run_dir}", *SHORT, stdin=b"").stdout == b""


def test_files_are_written_whole_or_not_at_all(run_dir: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in, a=b", tmp_path / "out, a=b"
    source.write_text("alpha\nbeta\n")
    words = ["translate", f"run_dir={run_dir}", *SHORT, f"input={source}"]
    assert command(*words, f"output={target}").returncode == 0
    assert target.read_bytes() == command(*words).stdout
    before = target.read_bytes()
    failed = command(*words[:-1], f"input={tmp_path / 'none'}", f"output={target}")
    assert failed.returncode == 3
    assert target.read_bytes() == before
    assert command(*words, f"output={tmp_path / 'no' / 'folder'}").returncode == 3
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


def test_options_of_the_command_line_reach_the_search(run_dir: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    lines = b"alpha beta\n\ngamma\n"
    twice = f"run_dir=['{run_dir}','{run_dir}']"
    plain = command("translate", f"run_dir={run_dir}", *SHORT, stdin=lines)
    done = command("translate", twice, *SHORT, f"alignments={links}", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain.stdout
    aligned = links.read_text().split("\n")[:-1]
    assert [bool(line) for line in aligned] == [bool(line) for line in plain.stdout.splitlines()]
    diverse = ("decode.beam_size=4", "decode.nbest=4", "decode.beam_groups=2", "decode.diversity=9")
    wanted = ("nbest_format=jsonl", "decode.max_length=5", "decode.alignments=true")
    done = command("translate", f"run_dir={run_dir}", *diverse, *wanted, stdin=lines)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(each["nbest"]) for each in found] == [4, 1, 4]
    assert all("score_kind" not in each and "alignment" in each for each in found)
    for option, kind in (("mbr=chrf", "utility"), ("coverage_penalty=0.2", "coverage")):
        words = ("decode.beam_size=4", f"decode.sampling={'mbr' in option}".lower())
        done = command(
            *("translate", f"run_dir={run_dir}", f"decode.{option}", *words, *wanted), stdin=lines
        )
        assert done.returncode == 0, done.stderr
        assert {json.loads(line)["score_kind"] for line in done.stdout.splitlines()} == {kind}


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What a program writes to its terminal, up to and with `wanted`; all there is for b""."""
    seen, deadline = b"", time.monotonic() + 90
    while not wanted or wanted not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # nobody has it open any more
                part = b""
            if not part:
                break
            seen += part
    assert wanted in seen, seen
    return seen


@pytest.mark.parametrize(("ending", "code"), [(b"\x04", 0), (b"\x03", 130)])
def test_each_line_typed_at_a_terminal_is_answered_at_once(
    run_dir: Path, ending: bytes, code: int
) -> None:
    mine, its = pty.openpty()
    # The terminal must be the program's own for Ctrl-C to reach it.
    program = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {PROGRAM}"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "translate", f"run_dir={run_dir}", *SHORT],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    os.close(its)
    try:
        greeting = read_until(mine, b"> ")
        assert b"type a line to translate it; Ctrl-D ends" in greeting
        expected = command(
            "translate", f"run_dir={run_dir}", *SHORT, stdin=b"alpha\nbeta gamma\n"
        ).stdout.splitlines()
        for line, answer in zip((b"alpha", b"beta gamma"), expected, strict=True):
            os.write(mine, line + b"\n")
            echo, *answered = read_until(mine, b"> ").split(b"\r\n")
            assert (echo, answered) == (line, [answer, b"> "])
        os.write(mine, ending)
        last = read_until(mine, b"")
        assert b"Traceback" not in last
        assert last.replace(b"^C", b"").replace(b"^D\b\b", b"").startswith(b"\r\n")
        assert process.wait(60) == code
    finally:
        process.kill()
        process.wait()
        os.close(mine)


@pytest.mark.parametrize("piped", ["stdin", "stdout"])
def test_there_is_no_prompt_for_a_pipe(run_dir: Path, piped: str) -> None:
    mine, its = pty.openpty()
    streams = {"stdin": its, "stdout": its, piped: subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "translate", f"run_dir={run_dir}", *SHORT],
        **streams,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        os.close(its)
        if piped == "stdin":
            _, err = process.communicate(b"alpha\n", timeout=90)
        else:
            os.write(mine, b"alpha\n\x04")
            out, err = process.communicate(timeout=90)
            assert out.count(b"\n") == 1
    os.close(mine)
    assert process.returncode == 0
    assert b"> " not in err
    assert b"Ctrl-D" not in err


def test_a_pipe_gets_each_chunk_when_it_is_done(run_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "translate", f"run_dir={run_dir}", *SHORT, "chunk_lines=2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(2):  # the second chunk is written when the first has been read
            process.stdin.write(b"alpha\nbeta\n")
            process.stdin.flush()
            assert all(process.stdout.readline().endswith(b"\n") for _ in range(2))
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_finished_output_is_not_replaced_unasked(run_dir: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("alpha\n")
    target.write_text("precious\n")
    words = ["translate", f"run_dir={run_dir}", *SHORT, f"output={target}"]
    for given in ([f"input={source}"], []):  # chunk by chunk, and from standard input
        done = command(*words, *given, stdin=b"alpha\n")
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
        assert f"output={target} exists; choose another one, or set overwrite=true" in str(
            done.stderr
        )
        assert target.read_text() == "precious\n"
    outputs = []
    for given in ([f"input={source}"], []):
        assert command(*words, *given, "overwrite=true", stdin=b"alpha\n").returncode == 0
        outputs.append(target.read_bytes())
    assert outputs[0] == outputs[1] != b"precious\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_what_is_odd_about_lines_is_counted(run_dir: Path, tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbfalpha", b"", b"\xff beta", b"gam\x00ma", b"de\rlta", b"eps. " * 20_000]
    content = b"\n".join(lines)  # without a final newline
    (tmp_path / "in").write_bytes(content)
    words = ["translate", f"run_dir={run_dir}", *SHORT, "max_source_tokens=40"]
    counts = "lines 6, empty 1, bad utf8 1"
    for kind, count in (("split", "in parts 1"), ("truncate", "truncated 1")):
        done = command(*words, f"long_lines={kind}", stdin=content)
        assert done.stdout.count(b"\n") == len(lines)
        assert f"translated: {counts}, {count}".encode() in done.stderr.splitlines()[-1]
        assert b"line 6 " in done.stderr
        files = [f"input={tmp_path / 'in'}", f"output={tmp_path / kind}"]
        whole = command(*words, f"long_lines={kind}", *files)
        assert (tmp_path / kind).read_bytes() == done.stdout
        assert done.stderr.splitlines()[-1] == whole.stderr.splitlines()[-1]


def test_control_c_ends_a_translation_quietly(run_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "translate", f"run_dir={run_dir}", *SHORT, "chunk_lines=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"alpha\n" * 3)
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert b"Traceback" not in err and b"error" not in err


@pytest.mark.parametrize("alignments", [False, True])
def test_nobody_reading_is_no_error_to_shout_about(
    run_dir: Path, tmp_path: Path, alignments: bool
) -> None:
    words = [f"run_dir={run_dir}", *SHORT, "chunk_lines=1"]
    if alignments:
        words.append(f"alignments={tmp_path / 'links'}")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "translate", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(b"alpha\n" * 200)
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 141
    said = process.stderr.read()
    assert b"Traceback" not in said and b"error" not in said
    assert not list(tmp_path.iterdir())


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_says_so_and_goes_on(
    corpus: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "run"
    words = training(corpus, folder, "train.log_every_steps=1", "train.max_steps=100000")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=90)
    assert process.returncode == code
    assert b"the same command goes on from there" in err
    (last,) = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))[-1:]
    step = int(last.removeprefix("step_"))
    done = command(
        *training(corpus, folder, "train.log_every_steps=1", f"train.max_steps={step + 1}")
    )
    assert done.returncode == 0
    assert f"resumed from {folder}/checkpoints/{last}".encode() in done.stderr


@pytest.mark.parametrize(("first", "started"), [(0, 3), (5, 3), (143, 1)])
def test_a_signal_ends_a_sweep_and_a_failed_run_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int, started: int
) -> None:
    seeds: list[int] = []

    def run(command: str, plain: dict[str, Any]) -> int:
        seeds.append(plain["seed"])
        return first if plain["seed"] == 1 else 0

    monkeypatch.setattr(cli, "_run", run)
    words = ["experiment=demo", f"run_dir={tmp_path}", "--multirun", "seed=1,2,3"]
    assert cli.main("train", words) == first
    assert seeds == [1, 2, 3][:started]


def test_existing_translations_are_scored_as_by_sacrebleu(tmp_path: Path) -> None:
    hyp, ref = tmp_path / "hyp", tmp_path / "ref"
    hyp.write_text("ein Hund\nzwei rote Katzen laufen\n")
    ref.write_text("ein Hund .\nzwei Katzen laufen\n")
    done = command(
        "eval", f"hyp={hyp}", f"ref={ref}", f"json={tmp_path / 'scores'}", program=CONFESSING
    )
    texts = [
        each.text for each in score(hyp.read_text().splitlines(), [ref.read_text().splitlines()])
    ]
    assert done.stdout.decode().splitlines() == texts
    ref.write_text("one\n")
    done = command("eval", f"hyp={hyp}", f"ref={ref}")
    assert done.returncode == 3
    assert f"{hyp} has 2 lines but {ref} has 1;".encode() in done.stderr


def test_a_test_set_that_is_not_there_takes_one_line(run_dir: Path, tmp_path: Path) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = command(
        "eval",
        f"run_dir={run_dir}",
        "test_set=wmt14/full",
        "langpair=en-de",
        SACREBLEU=str(tmp_path),
        **proxy,
    )
    assert done.returncode == 3
    assert b"wmt14/full en-de is not in sacrebleu's cache" in done.stderr.splitlines()[-1]
    assert b"Traceback" not in done.stderr
