"""How results are shown: lines and tables for people, JSON for programs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from lightconv_mt.config import Significance
from lightconv_mt.evaluation.results import Result, Results
from lightconv_mt.evaluation.speed import Speed
from lightconv_mt.evaluation.worst import Worst

TESTS = {
    Significance.bootstrap: "paired bootstrap",
    Significance.randomization: "approximate randomization",
}


def report_text(found: Results, significance: Significance) -> str:
    """A line a metric, or a table a metric for several systems; below it what else was asked."""
    results = found.results
    if len(results) == 1:
        parts = ["\n".join(score.text for score in results[0].scores)]
    else:
        parts = [*_comparisons(results)]
        parts.append(
            f"* p < 0.05 against {results[0].system.name}, {TESTS[significance]}; "
            f"mean ± 95 % interval by bootstrap"
        )
    for result in results:
        title = f"{result.system.name}, " if len(results) > 1 else ""
        if found.buckets:
            parts.append(title + _length_table(found, result))
        if result.worst is not None:
            parts.append(title + _worst_text(result.worst))
    return "\n\n".join(parts) + "\n"


def results_json(found: Results) -> str:
    """A list of records, one a system and metric, the baseline's first."""
    records = [
        record
        for result in found.results
        for place in range(len(result.scores))
        for record in [_record(found, result, place)]
    ]
    return json.dumps(records, indent=1, ensure_ascii=False) + "\n"


def _record(found: Results, result: Result, place: int) -> dict[str, Any]:
    """Everything known of a system by a metric; what was not asked for is left out."""
    score = result.scores[place]
    record: dict[str, Any] = {
        "name": score.name,
        "score": score.value,
        "signature": score.signature,
        "system": result.system.name,
    }
    if score.mean is not None:
        record |= {"mean": score.mean, "interval": score.interval}
    if score.p_value is not None:
        record["p_value"] = score.p_value
    if found.buckets:
        record["by_length"] = [
            {
                "unit": found.unit,
                "first": bucket.first,
                "last": bucket.last,
                "sentences": len(bucket.places),
                "score": scores[place],
            }
            for bucket, scores in zip(found.buckets, result.by_length, strict=True)
        ]
    if result.worst is not None and result.worst.metric == score.name:
        record["worst"] = [asdict(sentence) for sentence in result.worst.sentences]
    if result.system.speed is not None:
        record["speed"] = _speed_record(result.system.speed)
    return record


def _speed_record(speed: Speed) -> dict[str, Any]:
    rates = {
        "sentences_per_second": speed.sentences_per_second,
        "tokens_per_second": speed.tokens_per_second,
    }
    return {**asdict(speed), **rates}


def _comparisons(results: Sequence[Result]) -> Iterator[str]:
    """A table a metric, under its signature."""
    for place, first in enumerate(results[0].scores):
        rows = [["system", first.name, "mean ± 95 %", "p"]]
        for result in results:
            score = result.scores[place]
            p = "baseline"
            if score.p_value is not None:
                # SacreBLEU's p is small, too, where there is no difference at all.
                differs = score.p_value < 0.05 and score.value != first.value
                p = f"{score.p_value:.4f}{' *' if differs else '  '}"
            interval = f"{score.mean:.2f} ± {score.interval:.2f}"
            rows.append([result.system.name, f"{score.value:.2f}", interval, p])
        yield f"{first.name} {first.signature}\n{_table(rows)}"


def _length_table(found: Results, result: Result) -> str:
    rows = [[f"by {found.unit}", "sentences", *(score.name for score in result.scores)]]
    for bucket, scores in zip(found.buckets, result.by_length, strict=True):
        rows.append([bucket.name, f"{len(bucket.places):,}", *(f"{value:.2f}" for value in scores)])
    return _table(rows)


def _worst_text(worst: Worst) -> str:
    parts = [f"worst sentences by {worst.metric} of the sentence"]
    for sentence in worst.sentences:
        parts.append(f"line {sentence.line}, {worst.metric} = {sentence.score:.2f}")
        sides = [("source", sentence.src), ("hypothesis", sentence.hypothesis)]
        sides += [("reference", reference) for reference in sentence.references]
        # Lone carriage returns and the like would move the cursor.
        parts += [
            f"  {side:<10}  {' '.join(text.split())}" for side, text in sides if text is not None
        ]
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns in line: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
