"""Trained run folders, opened to translate with: one, an ensemble, a model that translates back."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lightconv_mt.assemble import build_model, source_limit, start_runtime
from lightconv_mt.config import RuntimeConfig, check_translates, load_run_config
from lightconv_mt.data.corpus import CorpusConfig
from lightconv_mt.decode.long_lines import LongLines
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError
from lightconv_mt.model.ensemble import Ensemble
from lightconv_mt.precision import DTYPES
from lightconv_mt.run_folder import find_checkpoint, same_tokenizers
from lightconv_mt.train.checkpoint import load_model_tensors, load_weights

logger = logging.getLogger(__name__)


def load_translator(
    run_dir: str | Sequence[str],
    checkpoint: str,
    runtime: RuntimeConfig,
    max_source_tokens: int | None = None,
    long_lines: LongLines | None = None,
    channel: Sequence[str] = (),
) -> Translator:
    """Open a run folder, or several as an ensemble, for translation.

    Args:
        run_dir: of a training run, or of several with the same tokenizers.
        checkpoint: auto (average, else best, else last), average, best, last, or a step.
        runtime: where and how precisely to compute.
        max_source_tokens: longer sources are cut; None cuts them as in training, or at 1,024.
        long_lines: how; None truncates them where training did, else splits them.
        channel: run folder of a model that translates back, or several, for decode.channel_weight.

    Raises:
        CheckpointError: when there is no such checkpoint, it is damaged, or tokenizers differ.
    """
    check_translates(runtime.precision)
    device = start_runtime(runtime)
    folders = [Path(each) for each in ([run_dir] if isinstance(run_dir, str) else run_dir)]
    if not folders:
        raise ConfigError("run_dir is an empty list; give a run folder, or several")
    configs = [load_run_config(folder) for folder in folders]
    tokenizers = same_tokenizers(folders, configs)
    models = []
    for folder, config in zip(folders, configs, strict=True):
        model = build_model(config.model, tokenizers, runtime)
        weights = find_checkpoint(folder, checkpoint, config)
        load_model_tensors(model, load_weights(weights), source=weights)
        logger.info("model: %s", weights)
        models.append(model.to(device).eval())
    if long_lines is None:
        was_cut = any(config.batch.truncate_source is not None for config in configs)
        long_lines = LongLines.truncate if was_cut else LongLines.split
    return Translator(
        models[0] if len(models) == 1 else Ensemble(models),
        tokenizers,
        device=device,
        precision=DTYPES[runtime.precision],
        max_source_tokens=max_source_tokens or min(map(source_limit, configs)),
        long_lines=long_lines,
        run_dir=folders[0],
        channel=_load_channel(channel, configs[0].data, runtime) if channel else None,
    )


def _load_channel(
    folders: Sequence[str], forth: CorpusConfig, runtime: RuntimeConfig
) -> Translator:
    """What translates back; where its languages are others, a warning says so."""
    back = load_run_config(folders[0]).data
    if (back.src_lang, back.tgt_lang) != (forth.tgt_lang, forth.src_lang):
        logger.warning(
            "channel=%s was trained from %s to %s; from %s to %s is expected",
            folders[0],
            *(back.src_lang, back.tgt_lang, forth.tgt_lang, forth.src_lang),
        )
    return load_translator(folders, "auto", runtime)
