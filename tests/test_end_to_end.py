"""Text to BLEU on a toy language: train, resume, average, translate, score."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_language import WORDS, Configure, learn, weights, write_corpus

from lightconv_mt import assemble, trained_run, training
from lightconv_mt.api import Translator
from lightconv_mt.config import (
    EvalConfig,
    NbestFormat,
    ScoreFormat,
    TrainRunConfig,
    TranslateConfig,
)
from lightconv_mt.corpus_translation import translate
from lightconv_mt.data.corpus import CorpusConfig
from lightconv_mt.data.tokenizer import TokenizerConfig, train_tokenizer
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.errors import CheckpointError, ConfigError, DataError
from lightconv_mt.evaluation.command import evaluate
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import Tying
from lightconv_mt.ops import Backend
from lightconv_mt.rehearsal import rehearse
from lightconv_mt.run_folder import lock_run
from lightconv_mt.train.checkpoint import (
    CheckpointConfig,
    CheckpointStore,
    load_model_tensors,
    load_weights,
    weights_digest,
)
from lightconv_mt.train.distributed import Distributed
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.schedule import InverseSqrtConfig
from lightconv_mt.train.state import Validation
from lightconv_mt.typed import to_yaml


def files(config: TrainRunConfig) -> dict[str, bytes]:
    folder = Path(config.run_dir)
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spy_on_validations(patch: pytest.MonkeyPatch) -> dict[int, Validation]:
    """What every validation from now on finds, by step."""
    seen: dict[int, Validation] = {}
    original = Trainer._measure

    def measure(self: Trainer) -> tuple[Validation, float]:
        found = original(self)
        seen[self.state.step] = found[0]
        return found

    patch.setattr(Trainer, "_measure", measure)
    return seen


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_a_toy_language_is_learned(
    configure: Configure,
    mixer: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    thorough: bool,
) -> None:
    if mixer not in ("attention", "dynamicconv", "lightconv") and not thorough:
        pytest.skip("trained by make reliability")
    config = configure(mixer=mixer)
    learn(config)
    capsys.readouterr()
    evaluation = EvalConfig(
        run_dir=[config.run_dir],
        json=str(tmp_path / "scores.json"),
        output=[str(tmp_path / "hypotheses")],
        decode=DecodeConfig(beam_size=4),
        runtime=config.runtime,
    )
    assert evaluate(evaluation) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" = ")[0] for line in printed] == ["BLEU", "chrF2", "TER"]
    assert "nrefs:1|case:mixed" in printed[0]
    bleu = json.loads((tmp_path / "scores.json").read_text())[0]["score"]
    assert bleu > 80.0
    assert len((tmp_path / "hypotheses").read_text().splitlines()) == 50
    # Words come from those they translate: the first from the last, and so on.
    assert config.data.test is not None and config.data.test.src is not None
    sources = Path(config.data.test.src).read_text().splitlines()
    translator = Translator.load(config.run_dir, device=config.runtime.device.value)
    aligned = translator.translate(sources, alignments=True)
    links = [
        (source, target, len(line.split()))
        for line, found in zip(sources, aligned, strict=True)
        for source, target in found.alignment or ()
        if len(found.text.split()) == len(line.split())
    ]
    right = sum(source == count - 1 - target for source, target, count in links)
    assert right > 0.7 * len(links) > 70
    # The run says in its own files what it measured.
    metrics = [
        json.loads(line)
        for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in metrics if "valid/bleu" in line] == [200, 400]
    assert set(json.loads((Path(config.run_dir) / "bleu.json").read_text())) == {
        "average",
        "best",
        "decode",
    }
    assert list((Path(config.run_dir) / "tensorboard").iterdir())


def test_a_model_without_case_is_validated_without_case(configure: Configure) -> None:
    config = configure(tokenizer=TokenizerConfig(vocab_size=300, lowercase=True))
    assert training.train(config) == 0
    results = json.loads((Path(config.run_dir) / "bleu.json").read_text())
    assert "case:lc" in results["average"]["signature"]
    translator = trained_run.load_translator(config.run_dir, "auto", config.runtime)
    assert translator.tokenizers.src.encode("BA DE") == translator.tokenizers.src.encode("ba de")


def test_runs_are_compared_and_timed(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [configure(run=name, steps=2, seed=seed) for seed, name in enumerate("ab", 1)]
    for config in runs:
        training.train(config)
    capsys.readouterr()
    evaluation = EvalConfig(
        run_dir=[config.run_dir for config in runs],
        output=[str(tmp_path / "a.txt"), str(tmp_path / "b.txt")],
        json=str(tmp_path / "json"),
        resamples=50,
        latency=True,
        latency_sentences=3,
        decode=DecodeConfig(beam_size=1, max_length=8),
        runtime=runs[0].runtime,
    )
    assert evaluate(evaluation) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "json").read_text())
    assert [each["system"] for each in found] == [runs[0].run_dir] * 3 + [runs[1].run_dir] * 3
    for record, config in zip(found[::3], runs, strict=True):
        translator = trained_run.load_translator(config.run_dir, "auto", config.runtime)
        speed = record["speed"]
        assert speed["sentences"] == 50 and speed["latency"]["sentences"] == 3
        assert speed["sentences_per_second"] == pytest.approx(50 / speed["seconds"])
        assert 2**26 < speed["peak_memory_bytes"] < 2**34
        lines = Path(tmp_path / f"{Path(config.run_dir).name}.txt").read_text().split("\n")[:-1]
        assert speed["tokens"] == sum(map(len, translator.tokenizers.tgt.encode_batch(lines)))
        test = config.data.test
        assert test is not None and test.src is not None
        sources = Path(test.src).read_text().splitlines()
        again = translator.translate(sources, evaluation.decode)
        assert [each.text for each in again] == lines
    # The files score as the runs do.
    assert test.tgt is not None
    evaluation.run_dir, evaluation.hyp, evaluation.ref = [], evaluation.output, [test.tgt]
    evaluation.output, evaluation.allow_tokenized = [], True
    assert evaluate(evaluation) == 0
    again = capsys.readouterr().out
    for config, path in zip(runs, evaluation.hyp, strict=True):
        again = again.replace(path, config.run_dir)
    assert [line.split() for line in again.splitlines()] == [
        line.split() for line in printed.splitlines()
    ]


def test_references_are_scored_by_force(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(steps=2)
    training.train(config)
    capsys.readouterr()
    for name, text in (("src", "ba de\n\nfi\n"), ("r1", "den ban\nx\nfin\n"), ("r2", "a\n\nfin\n")):
        (tmp_path / name).write_text(text)
    evaluation = EvalConfig(
        run_dir=[config.run_dir],
        src=str(tmp_path / "src"),
        ref=[str(tmp_path / "r1"), str(tmp_path / "r2")],
        score=True,
        json=str(tmp_path / "json"),
        decode=config.decode,
        runtime=config.runtime,
    )
    assert evaluate(evaluation) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[line, ref] for line in "123" for ref in "12"]
    translator = trained_run.load_translator(config.run_dir, "auto", config.runtime)
    pairs = [
        ("ba de", "den ban"),
        ("ba de", "a"),
        ("", "x"),
        ("", ""),
        ("fi", "fin"),
        ("fi", "fin"),
    ]
    expected = [translator.score([src], [ref])[0] for src, ref in pairs]
    assert [int(row[3]) for row in rows] == [each.tokens for each in expected]
    for row, each in zip(rows, expected, strict=True):
        assert float(row[2]) == pytest.approx(each.log_prob, abs=1e-4)
        assert float(row[4]) == pytest.approx(math.exp(-each.log_prob / each.tokens), rel=1e-4)
    assert rows[4][2:] == rows[5][2:]
    total = json.loads((tmp_path / "json").read_text())
    assert total["tokens"] == sum(each.tokens for each in expected)
    assert total["log_prob"] == pytest.approx(sum(float(row[2]) for row in rows), abs=1e-4)
    assert total["perplexity"] == pytest.approx(math.exp(-total["log_prob"] / total["tokens"]))
    # To a file, the sums are what is printed.
    evaluation.output, evaluation.score_format = [str(tmp_path / "out")], ScoreFormat.jsonl
    assert evaluate(evaluation) == 0
    assert capsys.readouterr().out.startswith(f"perplexity {total['perplexity']:.4f} a token, ")
    records = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [[str(each["line"]), str(each["reference"])] for each in records] == [
        row[:2] for row in rows
    ]
    assert [f"{each['log_prob']:.6f}" for each in records] == [row[2] for row in rows]


def test_runs_that_do_not_go_together_are_refused(configure: Configure) -> None:
    first, other = configure(run="a", steps=1), configure(run="b", steps=1)
    other.data = replace(other.data, test=other.data.valid)
    third = configure(run="c", steps=1)
    third.data = replace(third.data, tgt_lang="zz")
    for config in (first, other, third):
        Path(config.run_dir).mkdir()
        (Path(config.run_dir) / "config.yaml").write_text(to_yaml(config))
    evaluation = EvalConfig(
        run_dir=[first.run_dir, other.run_dir], decode=first.decode, runtime=first.runtime
    )
    with pytest.raises(DataError, match=r"have different test sets \(data.test\)"):
        evaluate(evaluation)
    evaluation.run_dir[1] = third.run_dir
    with pytest.raises(DataError, match=r"data.tgt_lang is yy in one and zz in the other"):
        evaluate(evaluation)


def test_one_line_in_is_one_line_out(configure: Configure, tmp_path: Path) -> None:
    config = configure(steps=2)
    training.train(config)
    (tmp_path / "in").write_bytes(
        "ba de\n\n   \nfi\u2028go\r\n\xff".encode("latin-1", "ignore") + b"\xff\xfe\nka"
    )
    lines = (tmp_path / "in").read_bytes().count(b"\n") + 1
    for nbest in (1, 2):
        translation = TranslateConfig(
            run_dir=[config.run_dir],
            input=str(tmp_path / "in"),
            output=str(tmp_path / "out"),
            overwrite=True,
            nbest_format=NbestFormat.tsv if nbest > 1 else NbestFormat.text,
            decode=DecodeConfig(beam_size=3, nbest=nbest),
            runtime=config.runtime,
        )
        assert translate(translation) == 0
        output = (tmp_path / "out").read_text().split("\n")[:-1]
        numbers = [line.split("\t")[0] for line in output] if nbest > 1 else output
        assert len(set(numbers) if nbest > 1 else numbers) == lines
    translation.nbest_format = NbestFormat.jsonl
    assert translate(translation) == 0
    objects = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [found["line"] for found in objects] == list(range(1, lines + 1))
    assert [line.split("\t")[2] for line in output] == [
        each["text"] for found in objects for each in found["nbest"]
    ]


def test_the_python_interface_translates_and_scores(configure: Configure) -> None:
    config = configure(steps=2)
    training.train(config)
    translator = Translator.load(config.run_dir, device=config.runtime.device.value)
    lines = ["ba de", "", "fi go hu"]
    found = translator.translate(lines, beam_size=3, nbest=2, max_length=5)
    assert [len(each.nbest) for each in found] == [2, 1, 2]
    assert found[1].text == ""
    alone = translator.translate(lines, beam_size=3, nbest=2, max_length=5, batch_size=1)
    assert [each.text for each in alone] == [each.text for each in found]
    (scored,) = translator.score(["ba de"], ["den ban"])
    assert scored.log_prob < 0.0
    with pytest.raises(ConfigError, match="did you mean beam_size"):
        translator.translate(lines, beam_sise=3)
    with pytest.raises(ConfigError, match="long_lines is 'cut'; choose one of truncate, split"):
        Translator.load(config.run_dir, long_lines="cut")
    with pytest.raises(ConfigError, match="one of auto, cpu, cuda"):
        Translator.load(config.run_dir, device="gpu")


def test_an_ensemble_is_of_runs_with_the_same_tokenizers(configure: Configure) -> None:
    first = configure("first", steps=2)
    training.train(first)
    shared = TokenizerConfig(vocab_size=300, src_model=f"{first.run_dir}/tokenizer.model")
    second = configure("second", steps=2, seed=7, tokenizer=shared)
    other = configure("other", steps=2, tokenizer=TokenizerConfig(vocab_size=290))
    for config in (second, other):
        training.train(config)
    folders = [first.run_dir, second.run_dir]
    lines = ["ba de", "", "fi go hu"]
    options = {"beam_size": 3, "nbest": 3, "max_length": 5}
    device = other.runtime.device.value
    found = Translator.load(folders, device=device).translate(lines, **options)
    single = [Translator.load(each, device=device).translate(lines, **options) for each in folders]
    assert found not in single
    twice = Translator.load(folders[:1] * 2, device=device).translate(lines, **options)
    assert [each.text for each in twice] == [each.text for each in single[0]]
    with pytest.raises(CheckpointError, match=r"/first and \S*/other have different tokenizers"):
        Translator.load([*folders, Path(other.run_dir)], device=device)
    with pytest.raises(ConfigError, match="run_dir is an empty list"):
        Translator.load([])


def test_outputs_begin_as_asked(configure: Configure, tmp_path: Path) -> None:
    config = configure(steps=2)
    training.train(config)
    (tmp_path / "in").write_text("ba de\nfi\nka le\n")
    translation = TranslateConfig(
        run_dir=[config.run_dir],
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        overwrite=True,
        prefix=str(tmp_path / "prefix"),
        chunk_lines=2,
        decode=DecodeConfig(beam_size=3),
        runtime=config.runtime,
    )
    (tmp_path / "prefix").write_text("den ban\n\nlen\n")
    for sampling in (False, True):
        translation.decode = DecodeConfig(beam_size=3, sampling=sampling)
        assert translate(translation) == 0
        first, _, third, _ = (tmp_path / "out").read_bytes().decode().split("\n")
        assert first.startswith("den ban")
        assert third.startswith("len")
    (tmp_path / "out").unlink()
    for prefixes, problem in (("den\n\n", "2 prefixes for 3 lines"), ("\n" * 4, "4 prefixes for")):
        (tmp_path / "prefix").write_text(prefixes)
        with pytest.raises(DataError, match=problem):
            translate(translation)
        assert not (tmp_path / "out").exists()


def test_a_run_that_could_not_be_scored_does_not_begin(
    configure: Configure, data: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sacrebleu.tokenizers import tokenizer_ja_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)  # as where it is not installed
    config = configure(steps=1, data=replace(data, tgt_lang="ja"))
    for function in (rehearse, training.train):
        with pytest.raises(
            ConfigError, match=r"tokenizer of 'ja' cannot be used .*sacrebleu\[ja\]"
        ):
            function(config)
    assert not Path(config.run_dir, "metrics.jsonl").exists()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_validation_sees_the_weights_that_are_saved_with_it(
    configure: Configure, ema: float
) -> None:
    config = configure(
        steps=9,
        train={"ema": ema},
        optim=OptimConfig(lr=5e-2),
        schedule=InverseSqrtConfig(warmup_steps=1),
        checkpoint=CheckpointConfig(save_every_steps=3, keep_last=3, average_last=0),
    )
    with pytest.MonkeyPatch.context() as patch:
        found = spy_on_validations(patch)
        training.train(config)
    assert sorted(found) == [3, 6, 9]
    samples = [seen.samples for _, seen in sorted(found.items())]
    assert samples[0] != samples[1] != samples[2]
    store = CheckpointStore(Path(config.run_dir), config.checkpoint)
    for step, seen in found.items():
        anew = trained_run.load_translator(config.run_dir, str(step), config.runtime)
        validator = assemble.build_validator(config, anew, Distributed())
        again = validator()
        assert (again.metrics, again.samples) == (seen.metrics, seen.samples), step
        # What was trained is something else, if there is a moving average, and the same if not.
        saved = store.load(step)
        assert bool(saved.ema) == (store.path(step) / "ema.safetensors").exists() == (ema > 0.0)
        load_model_tensors(validator.model, saved.model, source=step)
        assert (validator().metrics == seen.metrics) == (ema == 0.0)
    best = json.loads(Path(config.run_dir, "bleu.json").read_text())["best"]
    assert best["bleu"] == max(seen.metrics["valid/bleu"] for seen in found.values())


def test_a_moving_average_is_averaged_and_started_from(configure: Configure) -> None:
    config = configure(steps=3, train={"ema": 0.9})
    training.train(config)
    store = CheckpointStore(Path(config.run_dir), config.checkpoint)
    average = load_weights(Path(config.run_dir) / "average")
    last = [store.load(step).ema for step in store.steps()[-config.checkpoint.average_last :]]
    for name, tensor in average.items():
        mean = sum(each[name].double() for each in last) / len(last)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-6)
    shutil.rmtree(Path(config.run_dir) / "average")
    best = store.best_step()
    assert best is not None
    start = store.load(best)
    further = configure("next", steps=1, start_from=config.run_dir, optim=OptimConfig(lr=1e-9))
    further.checkpoint.average_last = 0
    training.train(further)
    for name, tensor in weights(further).items():
        if name in start.ema:
            torch.testing.assert_close(tensor, start.ema[name], rtol=0, atol=1e-6)
            assert not torch.equal(tensor, start.model[name])


@pytest.mark.parametrize("loop", [{}, {"rdrop": 3.0}, {"ema": 0.9}], ids=str)
def test_a_run_goes_on_bit_for_bit_where_it_was_stopped(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, loop: dict[str, float]
) -> None:
    straight, stopped = (configure(run, steps=7, train=loop) for run in ("straight", "stopped"))
    training.train(straight)
    original = Trainer._step
    killed_at = [2, 5]

    def step_or_die(self: Trainer, *arguments: Any) -> None:
        if killed_at and self.state.step + 1 == killed_at[0]:
            killed_at.pop(0)
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            training.train(stopped)
    training.train(stopped)
    ours, theirs = weights(straight), weights(stopped)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    metrics = [Path(config.run_dir, "metrics.jsonl").read_text() for config in (straight, stopped)]
    assert metrics[0] == metrics[1]


def test_repeating_a_finished_command_changes_no_file(configure: Configure) -> None:
    config = configure()
    training.train(config)
    before = files(config)
    assert training.train(config) == 0
    assert files(config) == before


def test_more_steps_continue_the_same_run(configure: Configure) -> None:
    straight, longer = configure("straight", steps=6), configure("longer", steps=3)
    training.train(straight)
    training.train(longer)
    longer.train.max_steps = 6
    training.train(longer)
    ours, theirs = weights(straight), weights(longer)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_goes_beyond_its_end_has_no_end_until_the_new_one(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(steps=3)
    training.train(config)
    average = Path(config.run_dir, "average")
    before = weights_digest(average)
    config.train.max_steps = 6

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "write_average", stop)
        training.train(config)
    training.train(config)
    assert weights_digest(average) != before
    config.train.max_steps, config.checkpoint = 7, replace(config.checkpoint, average_last=0)
    training.train(config)
    assert not average.exists()


def test_another_configuration_is_refused_with_both_values(configure: Configure) -> None:
    config = configure(steps=1)
    training.train(config)
    config.optim = OptimConfig(lr=1e-3)
    with pytest.raises(ConfigError, match=r"was started with optim\.lr=0\.004, not 0\.001"):
        training.train(config)


def test_a_run_goes_on_with_the_text_it_was_trained_on(
    configure: Configure, data: CorpusConfig, tmp_path: Path
) -> None:
    text = {"toy": write_corpus(tmp_path, "own", 200, 1)}
    config = configure(data=replace(data, train=text), steps=1)
    assert training.train(config) == 0
    kept = Path(config.run_dir) / "corpus.sha256"
    digest = kept.read_text()
    write_corpus(tmp_path, "own", 100, 2)  # fewer lines than the state has seen
    more = replace(config, train=replace(config.train, max_steps=2))
    for again in (more, replace(more, dry_run=True)):
        with pytest.raises(DataError, match=f"was trained on other text .*sha256 {digest[:12]}, n"):
            (rehearse if again.dry_run else training.train)(again)
    write_corpus(tmp_path, "own", 200, 1)
    kept.unlink()  # as in a folder from before there was such a file
    assert training.train(more) == 0
    assert kept.read_text() == digest


def test_one_embedding_is_of_one_vocabulary(configure: Configure) -> None:
    config = configure()
    kinds = TokenizerConfig(vocab_size=268), TokenizerConfig(vocab_size=268, lowercase=True)
    texts = ["ba de fi", "go hu ka"]
    first, cased = (train_tokenizer(kind, texts[:1] * 9) for kind in kinds)
    other = train_tokenizer(kinds[0], texts[1:] * 9)
    config.model.tying = Tying.all
    assemble.build_model(config.model, TokenizerPair(first, cased), config.runtime)
    with pytest.raises(ConfigError, match=r"tying=all needs one vocabulary, but ids of the source"):
        assemble.build_model(config.model, TokenizerPair(first, other), config.runtime)


def test_a_disk_too_full_for_the_tokenizer_is_one_line(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenizerPair, "save", full)
    with pytest.raises(ConfigError, match=r"cannot write the tokenizer into run_dir=.*: No space"):
        training.train(configure())


def test_accumulated_micro_batches_give_the_gradient_of_their_union(configure: Configure) -> None:
    """Gradients are normalised by target tokens, however these are cut into micro-batches."""
    from lightconv_mt.data.batching import collate
    from lightconv_mt.train.loss import LabelSmoothedLoss

    config = configure()
    device = torch.device(config.runtime.device.value)
    tokenizers = build_tokenizers(config.tokenizer, WORDS * 50, [f"{word}n" for word in WORDS] * 50)
    runtime = config.runtime
    if device.type == "cuda":  # whose kernels take no float64
        runtime = replace(runtime, kernels=Backend.torch)
    model = assemble.build_model(config.model, tokenizers, runtime).to(device).double().eval()
    rows = [([5 + i, 6, 2], [7, 8 + i] * (i + 1) + [2]) for i in range(6)]
    gradients = []
    for groups in ([rows], [rows[:1], rows[1:4], rows[4:]]):
        batches = [
            collate(group, tokenizers.src.ids, tokenizers.tgt.ids).to(device) for group in groups
        ]
        tokens = sum(batch.num_tokens for batch in batches)
        model.zero_grad()
        for batch in batches:
            hidden = model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
            value = LabelSmoothedLoss(0.1)(
                hidden, model.output_weight, batch.tgt_out, batch.tgt_mask
            )
            (value.loss / tokens).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)


def test_updates_that_are_not_finite_are_skipped(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = training.Trainer._update
    poisoned: set[int] = {3}

    def poison(self: Trainer, lr: float) -> float | None:
        if self.state.step in poisoned:
            next(self.model.parameters()).grad[0, 0] = float("nan")
        before = {name: value.clone() for name, value in self.model.named_parameters()}
        norm = original(self, lr)
        if self.state.step in poisoned:
            assert norm is None
            assert all(
                torch.equal(before[name], value) for name, value in self.model.named_parameters()
            )
        return norm

    monkeypatch.setattr(Trainer, "_update", poison)
    config = configure(steps=6, train={"log_every_steps": 1})
    assert training.train(config) == 0
    assert "step 3: the gradient is not finite; update skipped" in caplog.text
    lines = Path(config.run_dir, "metrics.jsonl").read_text().splitlines()
    logged = [found for line in lines if "train/lr" in (found := json.loads(line))]
    assert [each["train/skipped_steps"] for each in logged] == [0, 0, 1, 1, 1, 1]
    # A step that was not taken has no loss.
    assert ["train/loss" in each for each in logged] == [True, True, False, True, True, True]


def test_a_second_trainer_is_refused_and_a_dead_one_is_no_hindrance(configure: Configure) -> None:
    config = configure(steps=1)
    with (
        lock_run(Path(config.run_dir)),
        pytest.raises(ConfigError, match=rf"is being trained by process {os.getpid()} on "),
    ):
        training.train(config)
    (Path(config.run_dir) / "lock").write_text("process 1 on a machine that lost power")
    assert training.train(config) == 0


def test_patience_and_epochs_end_a_run(configure: Configure) -> None:
    config = configure(steps=500, train={"patience": 1})
    config.optim = OptimConfig(lr=1e-9)
    training.train(config)
    steps = [
        json.loads(line)["step"]
        for line in Path(config.run_dir, "metrics.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 6
    config = configure("epoch", steps=5000, train={"max_epochs": 1})
    config.train.validate_every_steps = config.checkpoint.save_every_steps = 1000
    training.train(config)
    last = json.loads(Path(config.run_dir, "metrics.jsonl").read_text().splitlines()[-1])
    assert 50 < last["step"] < 100


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is no run folder"),
        (lambda run: (run / "tokenizer.model").write_bytes(b""), "is not the file that"),
        (lambda run: (run / "average" / "model.safetensors").write_bytes(b"x"), "is damaged"),
        (
            lambda run: (run / "config.yaml").write_text(
                re.sub("dim: 64", "dim: 32", (run / "config.yaml").read_text())
            ),
            "does not fit the model",
        ),
    ],
)
def test_a_damaged_run_is_refused(
    configure: Configure, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    config = configure(steps=1)
    training.train(config)
    damage(Path(config.run_dir))
    (tmp_path / "in").write_text("ba\n")
    translation = TranslateConfig(
        run_dir=[config.run_dir],
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        decode=DecodeConfig(),
        runtime=config.runtime,
    )
    with pytest.raises(CheckpointError, match=message):
        translate(translation)
    assert not (tmp_path / "out").exists()


def test_an_unknown_checkpoint_lists_those_there_are(configure: Configure) -> None:
    config = configure(steps=2)
    training.train(config)
    with pytest.raises(
        CheckpointError, match=r"has no checkpoint 9; there is average, .*last, 1, 2"
    ):
        trained_run.load_translator(config.run_dir, "9", config.runtime)
