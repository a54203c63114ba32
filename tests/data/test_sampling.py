"""Random segmentations: the same in every process, right at both ends, distributed as due."""

import math
import random
import subprocess
import sys
from collections import Counter

import pytest

from lightconv_mt.data.sampling import LONGEST_WORD, ModelProto, SubwordSampler
from lightconv_mt.data.tokenizer import Tokenizer, TokenizerConfig, TokenizerKind, train_tokenizer

TEXT = [
    f"The {size} {color} fox number {n} jumps over {n % 7} lazy dogs again"
    for n, (size, color) in enumerate(
        [("quick", "brown"), ("slow", "red"), ("quicker", "browner"), ("slowest", "reddish")] * 40
    )
]


@pytest.fixture(scope="module", params=[TokenizerKind.unigram, TokenizerKind.bpe])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind=request.param, vocab_size=310), TEXT)


@pytest.fixture
def sampler(tokenizer: Tokenizer) -> SubwordSampler:
    return SubwordSampler(tokenizer.model)


def test_another_process_draws_the_same(tokenizer: Tokenizer, tmp_path) -> None:
    (tmp_path / "a.model").write_bytes(tokenizer.model)
    program = (
        "import sys, pathlib; from lightconv_mt.data.tokenizer import Tokenizer;"
        "tokenizer = Tokenizer.load(pathlib.Path(sys.argv[1]));"
        "print(tokenizer.encode_sampled(sys.argv[2:], alpha=0.3, seed=5))"
    )
    texts = TEXT[:20]
    printed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.model"), *texts],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == f"{tokenizer.encode_sampled(texts, alpha=0.3, seed=5)}\n"


def test_without_randomness_pieces_are_sentencepieces_own(
    tokenizer: Tokenizer, sampler: SubwordSampler, request: pytest.FixtureRequest
) -> None:
    # Nothing dropped; or probabilities so sharp that the best segmentation takes all of them.
    alpha = 0.0 if tokenizer.ids and "bpe" in request.node.name else 1e4
    for text in TEXT:
        ids = tokenizer.encode(text)
        assert sampler.sample(ids, alpha=alpha, generator=random.Random(1)) == ids


def test_everything_dropped_leaves_letters() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=340), TEXT)
    (ids,) = tokenizer.encode_sampled(["the quick fox"], alpha=1.0, seed=1)
    assert [len(piece) for piece in tokenizer.pieces(ids)] == [1] * len("_the_quick_fox")


def test_text_bytes_and_unknown_pieces_survive(tokenizer: Tokenizer) -> None:
    texts = ["The 日本 fox", "", " ", "x" * 500, "a\u2581b", "ﬁne dogs", "\x00\x01"]
    for seed in range(20):
        sampled = tokenizer.encode_sampled(texts, alpha=0.5, seed=seed)
        plain = tokenizer.encode_batch(texts)
        assert [tokenizer.decode(ids) for ids in sampled] == [
            tokenizer.decode(ids) for ids in plain
        ]


def test_unigram_segmentations_have_the_probability_of_their_pieces() -> None:
    model = ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    scores = {"a": -1.0, "b": -1.5, "c": -2.0, "ab": -1.2, "bc": -2.2, "abc": -2.5}
    for piece, score in scores.items():
        model.pieces.add(piece=piece, score=score)
    sampler = SubwordSampler(model.SerializeToString())
    ways = [("a", "b", "c"), ("ab", "c"), ("a", "bc"), ("abc",)]
    weights = [math.exp(0.5 * sum(scores[piece] for piece in way)) for way in ways]
    generator = random.Random(3)
    drawn = Counter(
        tuple(
            sampler._pieces[number]
            for number in sampler.sample([5], alpha=0.5, generator=generator)
        )
        for _ in range(20_000)
    )
    for way, weight in zip(ways, weights, strict=True):
        expected = 20_000 * weight / sum(weights)
        assert abs(drawn[way] - expected) < 5 * math.sqrt(expected)


def test_bpe_drops_each_merge_with_its_probability() -> None:
    model = ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    for rank, piece in enumerate(["a", "b", "ab"]):
        model.pieces.add(piece=piece, score=-rank)
    sampler, generator = SubwordSampler(model.SerializeToString()), random.Random(3)
    dropped = sum(
        len(sampler.sample([2], alpha=0.3, generator=generator)) == 2 for _ in range(20_000)
    )
    assert abs(dropped - 6_000) < 5 * math.sqrt(20_000 * 0.3 * 0.7)


def test_long_words_are_cut_at_pieces(tokenizer: Tokenizer, sampler: SubwordSampler) -> None:
    ids = tokenizer.encode("quick" * 100)
    words = list(sampler._words(ids))
    assert [number for word in words for number in word] == ids
    assert all(sum(map(len, tokenizer.pieces(word))) <= LONGEST_WORD for word in words)
