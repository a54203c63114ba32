"""Buckets hold each sentence once, and their scores are those of corpora of their own."""

from lightconv_mt.evaluation.lengths import bucket_scores, length_buckets
from lightconv_mt.scoring import build_metrics, score


def test_every_sentence_is_in_the_bucket_of_its_words() -> None:
    lengths = [0, 1, 5, 6, 10, 11, 60, 61, 200, 5]
    unit, buckets = length_buckets([" ".join(["wort"] * length) for length in lengths])
    assert unit == "words"
    assert [(bucket.name, bucket.places) for bucket in buckets] == [
        ("0", [0]),
        ("1-5", [1, 2, 9]),
        ("6-10", [3, 4]),
        ("11-15", [5]),
        ("41-60", [6]),
        ("61+", [7, 8]),
    ]


def test_text_without_spaces_is_counted_in_characters() -> None:
    unit, buckets = length_buckets(
        ["今天天气很好我们去公园散步吧。", "雨", "我们明天再见 OK。 " * 3]
    )
    assert unit == "characters"
    assert [(bucket.name, bucket.places) for bucket in buckets] == [
        ("1-10", [1]),
        ("11-20", [0]),
        ("21-30", [2]),
    ]
    assert (
        length_buckets(
            ["Donaudampfschifffahrtsgesellschaft", "今天天气很好", "ein Hund und noch einer"]
        )[0]
        == "words"
    )
    assert length_buckets(["", " "])[0] == "words"


def test_scores_are_those_of_the_parts() -> None:
    references = ["ein Hund läuft weg", "er bellt", "sie sieht ihm noch lange nach und lacht"]
    hypotheses = ["ein Hund läuft fort", "er schläft", "sie sieht ihm nach und lacht noch"]
    metrics = build_metrics(["bleu", "ter"])
    _, buckets = length_buckets(references)
    found = bucket_scores(metrics, hypotheses, [references], buckets)
    for places, scores in zip(([0, 1], [2]), found, strict=True):
        alone = score(
            [hypotheses[place] for place in places],
            [[references[place] for place in places]],
            metrics=["bleu", "ter"],
        )
        assert scores == [each.value for each in alone]
