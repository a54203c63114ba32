"""What keys of lcmt-eval cannot be given together, and what no command writes; needs no torch."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightconv_mt.config import EvalConfig, TranslateConfig


def contradiction(config: "EvalConfig") -> str | None:
    """The first thing wrong between keys and what to do about it; None where nothing is."""
    checks = (_systems, channel_alone, _data, _files, _scoring, _likelihood)
    return next((message for check in checks for message in check(config)), None)


def overwritten(
    read: Iterable[tuple[str, str | None]], written: Iterable[tuple[str, str | None]]
) -> Iterator[str]:
    """What is wrong with files to write over those that are read, or over each other.

    Args:
        read: key and path of each file; a path of None is none.
        written: likewise.
    """
    taken = {Path(path).resolve(): (key, path) for key, path in read if path is not None}
    for key, path in written:
        if path is None:
            continue
        place = Path(path).resolve()
        if place in taken:
            other, name = taken[place]
            yield f"{key}={path} would overwrite {other}={name}; give {key} another file"
        taken[place] = key, path


def channel_alone(config: "TranslateConfig | EvalConfig") -> Iterator[str]:
    """What is wrong with a channel without a weight, or the other way round."""
    weight = config.decode.channel_weight
    if weight and not config.channel:
        yield (
            f"decode.channel_weight is {weight}, but there is no channel; give channel=RUN, the "
            f"run folder of a model that translates back"
        )
    if not all(folder.strip() for folder in config.channel):
        yield "channel has an empty name; give channel=RUN"
    if config.channel and not weight:
        yield (
            "channel is given, but decode.channel_weight is 0; set it, such as "
            "decode.channel_weight=0.2, or leave channel out"
        )
    if config.channel and config.runtime.precision.name == "int8":
        yield (
            "runtime.precision=int8 is of searches, and a channel scores what they find; set fp32 "
            "or bf16, or leave channel out"
        )


def _systems(config: "EvalConfig") -> Iterator[str]:
    """Who is scored."""
    if not config.run_dir and not config.hyp:
        yield "nothing to score; give run_dir=RUN (a run folder) or hyp=FILE (translations)"
    if config.run_dir and config.hyp:
        yield "both run_dir and hyp are given; score runs or existing translations, not both"
    systems = config.run_dir or config.hyp
    key = "run_dir" if config.run_dir else "hyp"
    for name in systems:
        if not name.strip():
            yield f"{key} has an empty name; give {key}=NAME"
        if systems.count(name) > 1:
            yield f"{key} names {name} twice; give each system once"
    if config.channel and config.hyp:
        yield "channel orders the outputs of a run; give run_dir=RUN in place of hyp"
    if config.output and config.hyp:
        yield "output takes the translations of a run; leave it out where hyp holds them"
    if config.output and len(config.output) != len(systems):
        yield (
            f"output names {len(config.output)} files for {len(systems)} runs; give one for each, "
            f"such as output=[first.txt,second.txt]"
        )


def _data(config: "EvalConfig") -> Iterator[str]:
    """What they are scored on."""
    if config.test_set is not None and (config.src is not None or config.ref):
        yield "test_set brings its own source and references; leave out src and ref, or test_set"
    if config.test_set is not None and config.langpair is None:
        yield "test_set and langpair go together, such as test_set=wmt14/full langpair=en-de"
    if config.langpair is not None and config.test_set is None and not config.ref:
        yield "langpair names the languages of test_set or ref; give one of them"
    if config.hyp and config.test_set is None and not config.ref:
        yield "hyp needs references; give ref=FILE, or test_set and langpair"
    if config.src is not None and not config.ref:
        yield "src needs references; give ref=FILE, or use lcmt-translate to translate only"
    if config.run_dir and config.ref and config.src is None:
        yield "ref needs the source to translate; give src=FILE as well"


def _files(config: "EvalConfig") -> Iterator[str]:
    """What is written, and over what."""
    named = [("src", config.src), *(("ref", path) for path in config.ref)]
    named += [("hyp", path) for path in config.hyp]
    written = [*(("output", path) for path in config.output), ("json", config.json)]
    yield from overwritten(named, written)


def _scoring(config: "EvalConfig") -> Iterator[str]:
    """How."""
    if not config.metrics:
        yield "metrics is empty; give at least one of bleu, chrf, ter"
    for metric in config.metrics:
        if config.metrics.count(metric) > 1:
            yield f"metrics has {metric.name} twice; give each once"
    if config.paper_scoring and not config.run_dir and config.langpair is None:
        yield "paper_scoring goes by the target language; give langpair, such as langpair=en-de"
    if config.resamples < 40:
        yield f"resamples is {config.resamples}; give 40 or more, a 95 % interval needs them"
    if config.worst < 0:
        yield f"worst is {config.worst}; give the number of sentences to show, 0 for none"
    if config.latency and not config.run_dir:
        yield "latency is of a run that translates; give run_dir=RUN in place of hyp"
    if config.latency_sentences != type(config).latency_sentences and not config.latency:
        yield "latency_sentences are those that latency=true times; set it, or leave them out"
    if config.hyp and config.checkpoint != type(config).checkpoint:
        yield "checkpoint is one of a run; give run_dir=RUN in place of hyp, or leave it out"
    if config.decode.nbest > 1:
        yield "decode.nbest gives more translations than are scored; lcmt-translate writes them"


def _likelihood(config: "EvalConfig") -> Iterator[str]:
    """What does not go with score=true, which translates nothing."""
    if not config.score:
        if config.score_format is not type(config).score_format:
            yield "score_format is that of score=true; set it, or leave out score_format"
        return
    if len(config.run_dir) != 1:
        yield "score=true asks one run how likely it finds the references; give one run_dir"
    for key in ("paper_scoring", "confidence", "by_length", "worst", "latency"):
        if getattr(config, key):
            yield f"score=true translates nothing that {key} could be of; leave out one of the two"
    if config.channel:
        yield "score=true translates nothing that channel could order; leave out one of the two"
    if config.runtime.precision.name == "int8":
        yield (
            "score=true translates nothing that runtime.precision=int8 could be of; "
            "set fp32 or bf16"
        )
