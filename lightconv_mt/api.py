"""Translation from Python: open a run folder, give strings, take strings."""

from collections.abc import Sequence
from pathlib import Path

from lightconv_mt.config import RuntimeConfig, check_count, check_source_tokens
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.long_lines import LongLines
from lightconv_mt.decode.translations import TargetScore, Translation
from lightconv_mt.decode.translator import Translator as LineTranslator
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.trained_run import load_translator
from lightconv_mt.typed import build_typed, to_plain


class Translator:
    """A trained model that translates."""

    def __init__(self, translator: LineTranslator) -> None:
        """Wrap what `load` opened."""
        self._translator = translator

    @classmethod
    def load(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        checkpoint: str | int = "auto",
        device: str = "auto",
        precision: str = "fp32",
        kernels: str = "auto",
        threads: int | None = None,
        max_source_tokens: int | None = None,
        long_lines: str | None = None,
        channel: str | Path | Sequence[str | Path] = (),
    ) -> "Translator":
        """Open a run folder, or several with the same tokenizers as an ensemble.

        Args:
            path: of the folder, or a list of paths.
            checkpoint: auto (average, else best, else last), average, best, last, or a step.
            device: auto, cpu or cuda.
            precision: fp32 or bf16; fp16 on GPUs, int8 on CPUs.
            kernels: as `runtime.kernels`.
            threads: of the CPU; None is torch's choice.
            max_source_tokens: longer sources are cut; None cuts them as in training, or at 1,024.
            long_lines: how, truncate or split; None truncates them where training did, else splits
                them.
            channel: run folder of a model that translates back, or several as an ensemble, for the
                option channel_weight.

        Raises:
            LcmtError: when there is no such run or checkpoint, or it is damaged.
        """
        values = {"device": device, "precision": precision, "kernels": kernels, "threads": threads}
        plain = {**to_plain(RuntimeConfig()), **values}
        runtime = build_typed(RuntimeConfig, plain, registers={})
        if long_lines not in (None, *LongLines.__members__):
            raise ConfigError(
                f"long_lines is {long_lines!r}; choose one of {', '.join(LongLines.__members__)}"
            )
        check_source_tokens(max_source_tokens)
        cut = None if long_lines is None else LongLines[long_lines]
        return cls(
            load_translator(
                _names(path),
                str(checkpoint),
                runtime,
                max_source_tokens,
                cut,
                channel=_names(channel),
            )
        )

    def translate(
        self,
        lines: Sequence[str],
        *,
        prefixes: Sequence[str] | None = None,
        max_tokens: int = 4096,
        batch_size: int = 64,
        **options: float | bool | str | None,
    ) -> list[Translation]:
        """Translate sentences.

        Args:
            lines: one sentence each.
            prefixes: what the output of each is to begin with; "" is free.
            max_tokens: source tokens of a batch, padding included.
            batch_size: sentences of a batch, at most.
            options: fields of `DecodeConfig`, such as beam_size=1 or sampling=True.

        Returns:
            One translation a sentence, in order.

        Raises:
            ConfigError: when an option does not exist, or one or a number has a wrong value.
            DataError: when lines and prefixes differ in number.
        """
        _check_lists(lines, lines if prefixes is None else prefixes, name="prefixes")
        for name, count in (("max_tokens", max_tokens), ("batch_size", batch_size)):
            check_count(name, count)
        plain = {**to_plain(DecodeConfig()), **options}
        config = build_typed(DecodeConfig, plain, registers={})
        return self._translator.translate(
            lines, config, prefixes=prefixes, max_tokens=max_tokens, batch_size=batch_size
        )

    def score(self, lines: Sequence[str], targets: Sequence[str]) -> list[TargetScore]:
        """How likely the model finds given translations, one for each sentence.

        Raises:
            ConfigError: when the precision is int8.
            DataError: when lines and targets differ in number.
        """
        _check_lists(lines, targets, name="targets")
        return self._translator.score(lines, targets)


def _names(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Of one folder, or of several."""
    return [str(paths)] if isinstance(paths, str | Path) else [*map(str, paths)]


def _check_lists(lines: Sequence[str], others: Sequence[str], *, name: str) -> None:
    """Raise DataError unless both are lists, with one of `others`, called `name`, for each line."""
    for key, texts in (("lines", lines), (name, others)):
        if isinstance(texts, str):
            raise DataError(f"{key} is a single text; give a list of texts")
    if len(others) != len(lines):
        raise DataError(
            f"there are {len(lines):,} lines but {len(others):,} {name}; give one for each line"
        )
