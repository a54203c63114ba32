"""Export a run's model: `torch.export` programs and ONNX files of the encoder and a decoder step.

The folder holds encoder.pt2, encoder.onnx, step.pt2, step.onnx, the tokenizer and interface.json,
which names all inputs and outputs, their sizes and the state.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from lightconv_mt.config import Device, RuntimeConfig
from lightconv_mt.errors import LcmtError
from lightconv_mt.interop.export import export_model
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import Backend
from lightconv_mt.trained_run import load_translator


def main(words: list[str]) -> int:
    """Export what the words of the command line say; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", help="of the run")
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--checkpoint", default="auto", help="auto, average, best, last or a step")
    parser.add_argument("--no-onnx", action="store_true", help="torch.export programs only")
    arguments = parser.parse_args(words)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("lightconv_mt").setLevel(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses packages of no use here
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # as torch saves
    runtime = RuntimeConfig(device=Device.cpu, kernels=Backend.reference)
    try:
        translator = load_translator(arguments.run_dir, arguments.checkpoint, runtime)
        assert isinstance(translator.model, Seq2SeqTransformer)
        export_model(
            translator.model,
            translator.tokenizers,
            arguments.out,
            max_source_tokens=translator.max_source_tokens,
            onnx=not arguments.no_onnx,
        )
    except LcmtError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
