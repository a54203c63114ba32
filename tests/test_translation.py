"""How translations are written."""

import json
from math import inf

import pytest

from lightconv_mt.config import NbestFormat, RuntimeConfig, TranslateConfig
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translations import Translation
from lightconv_mt.translation import format_translation


def config(nbest_format: NbestFormat) -> TranslateConfig:
    return TranslateConfig(
        run_dir=["run"],
        nbest_format=nbest_format,
        decode=DecodeConfig(),
        runtime=RuntimeConfig(),
    )


def test_the_score_of_a_line_without_output_is_null_in_json() -> None:
    failed = Translation("", -inf, (("", -inf), ("a", -1.5)))
    (line,) = format_translation(7, failed, config(NbestFormat.jsonl))
    assert json.loads(line, parse_constant=pytest.fail) == {
        "line": 7,
        "nbest": [{"text": "", "score": None}, {"text": "a", "score": -1.5}],
    }
    (rows,) = format_translation(7, failed, config(NbestFormat.tsv))
    assert rows == "7\t-inf\t\n7\t-1.500000\ta\n"
