"""The embedded default corpus: the same fact in two languages, from Babel's copy of the CLDR.

Dates, times, units, currencies, territories, languages and lists of them: localised facts, not
prose. Needs no file and no network, and is the same on every machine.
"""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightconv_mt.data.cldr_facts import fact_makers
from lightconv_mt.data.corpus import SentencePair
from lightconv_mt.errors import DataError
from lightconv_mt.whole_files import replace_text

if TYPE_CHECKING:
    from babel import Locale

SIZES = {"valid": 500, "test": 500, "train": 24_000}
_FORMAT = 1  # raised when the generator changes, so that old caches are not read


def cached_pairs(
    src_lang: str, tgt_lang: str, *, split: str, cache_dir: Path
) -> Iterator[SentencePair]:
    """The pairs of `generate_pairs`, generated at the first call and read from then on.

    Args:
        src_lang: locale of the source side, such as en or pt_BR.
        tgt_lang: locale of the target side.
        split: train, valid or test.
        cache_dir: where to keep them.

    Raises:
        DataError: as `generate_pairs`.
    """
    import babel

    _check_split(split)
    folder = cache_dir / "cldr"
    stem = f"{_locale(src_lang)}-{_locale(tgt_lang)}-{babel.__version__}-{_FORMAT}"
    path = folder / f"{stem}.{split}.tsv"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for name, pairs in _generate_splits(src_lang, tgt_lang, seed=1).items():
                lines = "".join(f"{src}\t{tgt}\n" for src, tgt in pairs)
                replace_text(folder / f"{stem}.{name}.tsv", lines)
        cached = path.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError as error:
        raise DataError(
            f"cannot keep the cldr corpus in {folder}: {error.strerror}; set data.cache_dir"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged; delete it, it is generated again") from error
    for number, line in enumerate(cached, start=1):
        src, tab, tgt = line.partition("\t")
        if not tab:
            raise DataError(
                f"{path}, line {number}, is no pair; delete the file, it is generated again"
            )
        yield SentencePair(src, tgt)


def generate_pairs(
    src_locale: str, tgt_locale: str, *, split: str, seed: int = 1
) -> list[SentencePair]:
    """Generate one split of the corpus.

    With runs of digits masked, no source stands in two splits; all words of valid and test occur in
    train. Deterministic for one version of Babel.

    Args:
        src_locale: any locale Babel knows.
        tgt_locale: another one.
        split: train (24,000 pairs), valid or test (500 each).
        seed: of the choice of facts.

    Raises:
        DataError: when a locale or split is unknown, or the locales have too few facts in common.
    """
    _check_split(split)
    return _generate_splits(src_locale, tgt_locale, seed=seed)[split]


def _check_split(split: str) -> None:
    if split not in SIZES:
        raise DataError(f"the cldr corpus has no split {split!r}; choose train, valid or test")


def _locale(name: str) -> "Locale":
    from babel import Locale, UnknownLocaleError

    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError) as error:
        raise DataError(
            f"data=cldr knows no locale {name!r}; give one of Babel's, such as en, de, fr or pt_BR"
        ) from error


def _generate_splits(src: str, tgt: str, *, seed: int) -> dict[str, list[SentencePair]]:
    """All splits, in the order of their generation."""
    locales = (_locale(src), _locale(tgt))
    rng = random.Random(f"{_FORMAT} {locales[0]} {locales[1]} {seed}")
    groups: dict[str, list[SentencePair]] = {}  # by masked source
    for pair in _unique_pairs(rng, locales, count=sum(SIZES.values()) * 11 // 10):
        groups.setdefault(_masked(pair.src), []).append(pair)
    train = [pair for group in groups.values() for pair in group]
    known = [_word_counts([pair[side] for pair in train]) for side in (0, 1)]
    splits: dict[str, list[SentencePair]] = {"valid": [], "test": []}
    for name, chosen in splits.items():
        for masked in rng.sample(sorted(groups), len(groups)):
            if len(chosen) == SIZES[name]:
                break
            own = [_word_counts([pair[side] for pair in groups[masked]]) for side in (0, 1)]
            if all(
                known[side][word] > count for side in (0, 1) for word, count in own[side].items()
            ):
                for side in (0, 1):
                    for word, count in own[side].items():
                        known[side][word] -= count
                chosen.append(groups.pop(masked)[0])
    train = [pair for group in groups.values() for pair in group]
    splits["train"] = _cut(rng.sample(train, len(train)), SIZES["train"])
    for name, chosen in splits.items():
        if len(chosen) < SIZES[name] // 2:
            raise DataError(
                f"Babel's data gives only {len(chosen)} {name} pairs for {src}-{tgt}; "
                f"choose locales with more data, such as en, de, fr, es, ru or ja"
            )
    return splits


def _cut(pairs: list[SentencePair], size: int) -> list[SentencePair]:
    """The first `size` pairs, but those that bring a new word before all others."""
    seen: set[str] = set()
    fresh: list[SentencePair] = []
    others: list[SentencePair] = []
    for pair in pairs:
        words = {*_word_counts([pair.src]), *_word_counts([pair.tgt])}
        (fresh if words - seen else others).append(pair)
        seen |= words
    return [*fresh, *others][:size]


def _unique_pairs(
    rng: random.Random, locales: tuple["Locale", "Locale"], *, count: int
) -> list[SentencePair]:
    """Different facts; a source with two translations is left out."""
    makers, weights = zip(*fact_makers(locales), strict=True)
    targets: dict[str, str] = {}
    ambiguous: set[str] = set()
    for maker in rng.choices(makers, weights, k=count * 2):
        fact = maker(rng)
        src, tgt = (_plain_spaces(fact(locale)) for locale in locales)
        if targets.setdefault(src, tgt) != tgt:
            ambiguous.add(src)
        if len(targets) - len(ambiguous) >= count:
            break
    return [SentencePair(*pair) for pair in targets.items() if pair[0] not in ambiguous]


def _plain_spaces(text: str) -> str:
    """Any white space as one plain space: which kind stands in a number varies by CLDR version."""
    return " ".join(text.split())


def _masked(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def _word_counts(texts: Sequence[str]) -> dict[str, int]:
    """How often each word occurs, digits masked, without the punctuation around it."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in _masked(text).split():
            stripped = re.sub(r"^\W+|\W+$", "", word)
            counts[stripped] = counts.get(stripped, 0) + 1
    return counts
