"""The summarisation recipe on small local data: articles cut, trigrams blocked, lengths kept."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lightconv_mt import cli, trained_run
from lightconv_mt.config import load_run_config
from lightconv_mt.data.corpus import read_corpus
from lightconv_mt.decode import batch_search

WORDS = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu"]
KEPT = 40  # pieces of an article


def write_articles(path: Path, count: int, seed: int) -> None:
    """Summaries are the first words of their article, each with an ending; two lines, as there."""
    from datasets import Dataset

    generator = random.Random(seed)
    articles = [generator.choices(WORDS, k=generator.randint(60, 120)) for _ in range(count)]
    highlights = [" ".join(f"{w}n" for w in article[:6]) for article in articles]
    table = {
        "article": [" ".join(article) for article in articles],
        "highlights": [text.replace(" ", "\n", 1) for text in highlights],
    }
    Dataset.from_dict(table).to_parquet(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe, made small, with articles longer than the model reads."""
    folder = tmp_path_factory.mktemp("summaries")
    (folder / "data").mkdir()
    for name, count in (("train", 300), ("validation", 12), ("test", 12)):
        write_articles(folder / "data" / f"{name}.parquet", count, len(name))
    code = cli.main(
        "train",
        [
            *("experiment=cnn_dm_lightconv", "model=tiny", f"run_dir={folder / 'run'}"),
            *(f"data.{key}.path={folder / 'data'}" for key in ("train.cnn_dm", "valid", "test")),
            *(f"data.{key}.subset=null" for key in ("train.cnn_dm", "valid", "test")),
            *(f"data.cache_dir={folder / 'cache'}", "tokenizer.vocab_size=300", "runtime=cpu"),
            *(f"batch.truncate_source={KEPT}", "batch.max_length=64", "batch.max_tokens=512"),
            *("model.encoder_layers=1", "model.decoder_layers=1", "model.dropout=0"),
            *("train.accumulate=1", "train.max_steps=20", "train.validate_every_steps=20"),
            *("train.log_every_steps=10", "schedule.warmup_steps=10", "optim.lr=4e-3"),
            *("decode.min_length=5", "decode.max_length=12", "runtime.threads=1"),
        ],
    )
    assert code == 0
    return folder / "run"


def test_articles_are_cut_where_training_cut_them(run: Path) -> None:
    config = load_run_config(run)
    translator = trained_run.load_translator(str(run), "last", config.runtime)
    assert translator.max_source_tokens == KEPT + 1
    generator = random.Random(5)
    article = " ".join(generator.choices(WORDS, k=80))
    heads = translator.tokenizers.src.encode(article)
    assert len(heads) > KEPT
    other = f"{article} {article}"
    first, second = translator.translate([article, other], config.decode)
    assert first.text == second.text
    assert translator.report.truncated == 2
    whole = trained_run.load_translator(str(run), "last", config.runtime, max_source_tokens=1000)
    assert whole.translate([article], config.decode)[0].score != first.score


def test_no_pair_was_dropped_for_its_length(run: Path) -> None:
    config = load_run_config(run)
    corpus = read_corpus(config.data)
    assert len(list(corpus.pairs())) == 300
    assert not corpus.report.dropped


def test_lengths_are_kept_and_no_trigram_comes_twice(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run_config(run)
    translator = trained_run.load_translator(str(run), "last", config.runtime)
    articles = [" ".join(random.Random(n).choices(WORDS, k=70)) for n in range(8)]
    decode = replace(config.decode, min_length=30, max_length=40)
    outputs: list[tuple[int, ...]] = []

    def noted(search: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        found = search(*arguments, **options)
        outputs.extend(best.tokens[:-1] for best, *_ in found)
        return found

    for name in ("beam_search", "native_search"):
        search = partial(noted, getattr(batch_search, name))
        monkeypatch.setattr(batch_search, name, search)
    twice = []
    for size in (decode.no_repeat_ngram_size, 0):
        outputs.clear()
        translator.translate(articles, replace(decode, no_repeat_ngram_size=size))
        trigrams = [[*zip(ids, ids[1:], ids[2:], strict=False)] for ids in outputs]
        twice.append(sum(len(each) - len({*each}) for each in trigrams))
        assert all(30 <= len(ids) <= 40 for ids in outputs)
    assert (decode.no_repeat_ngram_size, len(outputs)) == (3, 8)
    assert twice[0] == 0 < twice[1]


def test_a_summary_is_scored(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [f"run_dir={run}", "runtime=cpu", "decode=summary", "decode.min_length=5"]
    pytest.importorskip("rouge_score")
    metrics = "metrics=rouge1,rouge2,rougeL,bleu"
    assert cli.main("eval", [*line, "decode.max_length=12", metrics]) == 0
    printed = capsys.readouterr().out.splitlines()
    names = [text.split(" = ")[0] for text in printed]
    assert names == ["ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU"]
