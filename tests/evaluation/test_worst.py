"""The worst sentences come first, by sentence scores that are sacrebleu's."""

import pytest
import sacrebleu

from lightconv_mt.evaluation.worst import worst_sentences
from lightconv_mt.scoring import build_metric

REFERENCES = ["ein Hund läuft weg", "eine Katze schläft", "zwei Männer gehen fort", "es regnet"]
HYPOTHESES = ["ein Hund läuft weg", "Katze", "drei Frauen kommen", "xyz"]


@pytest.mark.parametrize("name", ["chrf", "bleu", "ter"])
def test_order_and_scores(name: str) -> None:
    metric = build_metric(name, effective_order=True)
    found = worst_sentences(metric, HYPOTHESES, [REFERENCES], None, count=3)
    score = {
        "chrf": sacrebleu.sentence_chrf,
        "bleu": sacrebleu.sentence_bleu,
        "ter": sacrebleu.sentence_ter,
    }[name]
    expected = [score(h, [r]).score for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert found.metric == {"chrf": "chrF2", "bleu": "BLEU", "ter": "TER"}[name]
    assert [each.score for each in found.sentences] == sorted(expected, reverse=name == "ter")[:3]
    for each in found.sentences:
        assert each.score == expected[each.line - 1]
        assert (each.hypothesis, each.references, each.src) == (
            HYPOTHESES[each.line - 1],
            [REFERENCES[each.line - 1]],
            None,
        )
    assert 1 not in [each.line for each in found.sentences]


def test_ties_go_by_line_and_every_reference_counts() -> None:
    found = worst_sentences(
        build_metric("chrf"),
        ["b", "a", "q", "c"],
        [["x", "y", "z", "w"], ["b", "k", "l", "m"]],
        ["one", "two", "three", "four"],
        count=9,
    )
    assert [each.line for each in found.sentences] == [2, 3, 4, 1]
    assert found.sentences[0].src == "two"
    assert found.sentences[0].references == ["y", "k"]
    assert found.sentences[-1].score == 100.0
