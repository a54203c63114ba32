"""Compares this library with recorded inputs and outputs of fairseq: any golden folder."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import beam_search
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import DataError
from lightconv_mt.interop.fairseq import parameter_name, rename_parameters
from lightconv_mt.interop.fairseq_architecture import read_architecture
from lightconv_mt.model.native_decoder import NativeDecoder, unsupported
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import (
    Backend,
    dynamicconv,
    lightconv,
    mask_outside_taps,
    resolve_backend,
)
from lightconv_mt.train.checkpoint import load_model_tensors
from lightconv_mt.train.loss import LabelSmoothedLoss

logger = logging.getLogger(__name__)

# Imports a checkpoint, whose dictionaries lie in a folder, and opens what came of it.
OpenImported = Callable[[Path, Path], AbstractContextManager[Translator]]


class Tolerance(NamedTuple):
    """Largest allowed `|ours - expected| - relative * |expected|`."""

    absolute: float
    relative: float = 0.0


# The golden folder's own suggestions for float32.
TOLERANCES = {
    "conv output": Tolerance(1e-5, 1e-5),
    "conv input gradient": Tolerance(2e-5, 1e-5),
    "conv weight gradient": Tolerance(1e-4, 1e-5),
    "conv bias gradient": Tolerance(5e-5, 1e-5),
    "encoder output": Tolerance(5e-5),
    "log-probability": Tolerance(5e-5),
    "loss": Tolerance(0.0, 2e-6),
    "gradient": Tolerance(1e-4),
    "gradient norm": Tolerance(1e-4),
    "beam score": Tolerance(1e-5),
    "beam hypothesis": Tolerance(0.0),
    # With the decoder in C++.
    "C++ beam score": Tolerance(1e-5),
    "C++ beam hypothesis": Tolerance(0.0),
    # Of the checkpoint files, turned into run folders.
    "imported log-probability": Tolerance(5e-5),
    "imported beam score": Tolerance(1e-5),
    "imported beam hypothesis": Tolerance(0.0),
    "imported C++ beam score": Tolerance(1e-5),
    "imported C++ beam hypothesis": Tolerance(0.0),
    "imported translation": Tolerance(0.0),
}


class Comparison(NamedTuple):
    """One compared quantity of one case.

    Attributes:
        case: where it stands in the folder.
        quantity: a key of `TOLERANCES`.
        error: worst absolute difference (of hypotheses and translations: number that differ).
        excess: by how much the worst element exceeds its tolerance; at most 0 when it passes.
    """

    case: str
    quantity: str
    error: float
    excess: float


class _Beams(NamedTuple):
    """One recorded beam search: sources (B, S) padded on the right, and what fairseq found."""

    name: str
    src: Tensor
    config: DecodeConfig
    hypotheses: list[list[dict[str, Any]]]


def compare_folder(
    folder: Path,
    *,
    backend: Backend,
    dtype: torch.dtype,
    open_imported: OpenImported | None = None,
) -> Iterator[Comparison]:
    """Run every case of a golden folder.

    Args:
        folder: holds `conv_*.json` with tensors beside them, and `model_*` folders.
        backend: implementation of the convolutions.
        dtype: float32 or float64 to compute in.
        open_imported: called with every `checkpoint*.pt` of a model folder, and that folder; None
            leaves them out.

    Raises:
        DataError: where the folder is not one.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the one that holds conv_*.json and model_*/")
    for path in sorted(folder.glob("conv_*.json")):
        tensors = {
            key: tensor.to(dtype)
            for key, tensor in load_file(path.with_suffix(".safetensors")).items()
        }
        for case in json.loads(path.read_text()):
            yield from _compare_module(case, _with_prefix(tensors, f"{case['id']}."), backend)
    for path in sorted(folder.glob("model_*")):
        beams = list(_read_beams(path))
        yield from _compare_model(path, beams, backend, dtype)
        if open_imported is None:
            continue
        for checkpoint in sorted(path.glob("checkpoint*.pt")):
            with open_imported(checkpoint, path) as translator:
                translator.model.to(dtype)
                yield from _compare_imported(path, checkpoint.name, beams, translator)


def _compare_module(
    case: dict[str, Any], tensors: dict[str, Tensor], backend: Backend
) -> Iterator[Comparison]:
    """Output and every gradient of one convolution module; tensors are (T, B, C)."""
    leaves = {
        name: tensor.clone().requires_grad_()
        for name, tensor in tensors.items()
        if f"d.{name}" in tensors or f"d{name}" in tensors
    }
    x = leaves["x"].transpose(0, 1)  # (B, T, C)
    options: dict[str, Any] = {
        "padding_left": case["padding_l"],
        "normalize": case["weight_softmax"],
        "backend": backend,
    }
    if "weight" in leaves:
        y = lightconv(x, leaves["weight"].flatten(1), **options)
    else:
        query = leaves["query"].transpose(0, 1) if case["query"] else x
        predicted = F.linear(
            query, leaves["weight_linear.weight"], leaves.get("weight_linear.bias")
        )
        if case["in_proj"]:
            x, predicted = predicted.split([case["C"], case["H"] * case["K"]], dim=-1)
        weight = predicted.unflatten(-1, (case["H"], case["K"]))
        if case["renorm_padding"]:
            weight = mask_outside_taps(weight, case["padding_l"])
        y = dynamicconv(x, weight, **options)
    for bias in ("bias", "conv_bias"):
        if bias in leaves:
            y = y + leaves[bias].flatten()
    y = y.transpose(0, 1)
    yield _compare(case["id"], "conv output", y, tensors["y"])
    (y * tensors["grad_out"]).sum().backward()
    for name, leaf in leaves.items():
        kind = "input" if name in ("x", "query") else "bias" if name.endswith("bias") else "weight"
        expected = tensors.get(f"d.{name}", tensors.get(f"d{name}"))
        assert leaf.grad is not None and expected is not None, name
        yield _compare(f"{case['id']} {name}", f"conv {kind} gradient", leaf.grad, expected)


def _compare_model(
    folder: Path, beams: Sequence[_Beams], backend: Backend, dtype: torch.dtype
) -> Iterator[Comparison]:
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    model = Seq2SeqTransformer(
        read_architecture(config["model"]),
        src_vocab_size=config["src_vocab"],
        tgt_vocab_size=config["tgt_vocab"],
        src_pad_id=config["pad"],
        tgt_pad_id=config["pad"],
        backend=backend,
    ).eval()
    load_model_tensors(model, rename_parameters(tensors, model.config.tying), source=folder)
    model.to(dtype)
    # fairseq's decoder begins with the end-of-sentence token.
    ids = SpecialIds(bos=config["eos"], pad=config["pad"], eos=config["eos"], unk=config["unk"])
    expected = load_file(folder / "expected.safetensors")
    for name, batch in json.loads((folder / "expected.json").read_text())["batches"].items():
        case = f"{folder.name}/{name}"
        yield from _compare_batch(case, model, batch, _with_prefix(expected, f"{name}."), ids.pad)
    for run in beams:
        yield from _compare_beams(f"{folder.name}/{run.name}", model, ids, run)


def _compare_batch(
    case: str,
    model: Seq2SeqTransformer,
    batch: dict[str, Any],
    expected: dict[str, Tensor],
    pad: int,
) -> Iterator[Comparison]:
    """Encoder output, log-probabilities, loss and gradients; only real positions are defined."""
    src, tgt_in, target = (
        torch.tensor(batch[key]) for key in ("src_tokens", "prev_output_tokens", "target")
    )
    src_mask, tgt_mask = src != pad, target != pad
    model.zero_grad()
    hidden = model(src, src_mask, tgt_in, tgt_in != pad)
    if "encoder_out" in expected:
        memory = model.encode(src, src_mask)
        yield _compare(
            case,
            "encoder output",
            memory[src_mask],
            expected["encoder_out"].transpose(0, 1)[src_mask],
        )
    logprobs = model.project(hidden).log_softmax(dim=-1)
    yield _compare(case, "log-probability", logprobs[tgt_mask], expected["logprobs"][tgt_mask])
    value = LabelSmoothedLoss(0.1, backend=model.backend)(
        hidden, model.output_weight, target, tgt_mask
    )
    yield _compare(f"{case} loss", "loss", value.loss, torch.tensor(batch["loss"]))
    yield _compare(f"{case} nll", "loss", value.nll, torch.tensor(batch["nll_loss"]))
    value.loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    total = batch["total_grad_norm"]
    for key, norm in batch["grad_norm"].items():
        name = parameter_name(key, model.config.tying)
        if name is None:
            continue
        # Some gradients vanish in exact arithmetic, so small norms are compared with the total.
        scale = max(norm, 1e-3 * total)
        yield _compare(
            f"{case} {key}",
            "gradient norm",
            gradients[name].norm() / scale,
            torch.tensor(norm / scale),
        )
        if (full := expected.get(f"grad.{key}")) is not None:
            yield _compare(f"{case} {key}", "gradient", gradients[name].view_as(full), full)


def _read_beams(folder: Path) -> Iterator[_Beams]:
    pad = json.loads((folder / "config.json").read_text())["pad"]
    beams = json.loads((folder / "beam.json").read_text())
    width = max(len(tokens) for tokens in beams["src"])
    src = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens in beams["src"]])
    for number, run in enumerate(beams["runs"]):
        arguments = run["args"]
        config = DecodeConfig(
            beam_size=arguments["beam_size"],
            nbest=arguments["beam_size"],
            length_penalty=arguments["len_penalty"],
            max_length_ratio=arguments["max_len_a"],
            max_length_extra=arguments["max_len_b"],
            min_length=arguments.get("min_len", 1),
            unk_penalty=arguments.get("unk_penalty", 0.0),
            no_repeat_ngram_size=_obeyed_ngram_size(run),
        )
        yield _Beams(f"beam {number}", src, config, run["hypotheses"])


def _compare_beams(
    case: str, model: Seq2SeqTransformer, ids: SpecialIds, run: _Beams, *, kind: str = ""
) -> Iterator[Comparison]:
    """Hypotheses and scores of a recorded beam search, with the decoder in C++ too."""
    decoders: list[tuple[str, Seq2SeqTransformer | NativeDecoder]] = [("", model)]
    single = model.output_weight.dtype is torch.float32
    kernels = resolve_backend(model.backend, device=run.src.device)
    if single and kernels is Backend.native and unsupported(model) is None:
        decoders.append(("C++ ", NativeDecoder(model, torch.float32)))
    for where, decoder in decoders:
        with torch.inference_mode():
            found = _searched(model, decoder, ids, run)
        yield from _compare_hypotheses(case, found, run, kind=kind + where)


def _searched(
    model: Seq2SeqTransformer,
    decoder: Seq2SeqTransformer | NativeDecoder,
    ids: SpecialIds,
    run: _Beams,
) -> list[list[Hypothesis]]:
    src_mask = run.src != ids.pad
    state: Any = decoder.start(model.encode(run.src, src_mask), src_mask, run.config.beam_size)
    step: Any = decoder.decode_step
    return beam_search(
        step,
        state,
        src_lengths=src_mask.sum(dim=1),
        ids=ids,
        config=run.config,
        backend=model.backend,
    )


def _compare_hypotheses(
    case: str, found: list[list[Hypothesis]], run: _Beams, *, kind: str
) -> Iterator[Comparison]:
    for sentence, (ours, theirs) in enumerate(zip(found, run.hypotheses, strict=True)):
        place = f"{case}, sentence {sentence}"
        differing = sum(
            list(mine.tokens) != list(other["tokens"])
            for mine, other in zip(ours, theirs, strict=True)
        )
        yield Comparison(place, f"{kind}beam hypothesis", differing, differing)
        scores = torch.tensor([hypothesis.score for hypothesis in ours])
        expected = torch.tensor([other["score"] for other in theirs])
        yield _compare(place, f"{kind}beam score", scores, expected)


def _compare_imported(
    folder: Path, checkpoint: str, beams: Sequence[_Beams], translator: Translator
) -> Iterator[Comparison]:
    """Log-probabilities, beams, and the way from text to text, of an imported checkpoint."""
    model, src, tgt = translator.model, translator.tokenizers.src, translator.tokenizers.tgt
    assert isinstance(model, Seq2SeqTransformer), type(model)
    expected = load_file(folder / "expected.safetensors")
    for name, batch in json.loads((folder / "expected.json").read_text())["batches"].items():
        real = torch.tensor(batch["target"]) != tgt.ids.pad
        with torch.inference_mode():
            found = _logprobs(model, batch, src.ids.pad)[real]
        case = f"{folder.name}/{checkpoint}, {name}"
        yield _compare(case, "imported log-probability", found, expected[f"{name}.logprobs"][real])
    for run in beams:
        case = f"{folder.name}/{checkpoint}, {run.name}"
        yield from _compare_beams(case, model, tgt.ids, run, kind="imported ")
        texts = [src.decode(row) for row in run.src.tolist()]
        translations = translator.translate(texts, run.config)
        for ours, theirs in zip(translations, run.hypotheses, strict=True):
            wanted = [tgt.decode(hypothesis["tokens"]) for hypothesis in theirs]
            differing = sum(
                text != other for (text, _), other in zip(ours.nbest, wanted, strict=True)
            )
            yield Comparison(case, "imported translation", differing, differing)


def _logprobs(model: Seq2SeqTransformer, batch: dict[str, Any], pad: int) -> Tensor:
    """Log-probabilities (B, T, V) of a recorded batch."""
    src, tgt_in = torch.tensor(batch["src_tokens"]), torch.tensor(batch["prev_output_tokens"])
    hidden = model(src, src != pad, tgt_in, tgt_in != pad)
    return model.project(hidden).log_softmax(dim=-1)


def _obeyed_ngram_size(run: dict[str, Any]) -> int:
    """The recorded no_repeat_ngram_size, or 0 (off) where the recorded outputs repeat one."""
    size = int(run["args"].get("no_repeat_ngram_size", 0))
    for hypotheses in run["hypotheses"]:
        for hypothesis in hypotheses:
            ngrams = list(
                zip(*(hypothesis["tokens"][start:] for start in range(size)), strict=False)
            )
            if len(set(ngrams)) < len(ngrams):
                logger.warning(
                    "a recorded output repeats a %d-gram although its run bans them; "
                    "compared without",
                    size,
                )
                return 0
    return size


def _compare(case: str, quantity: str, ours: Tensor, expected: Tensor) -> Comparison:
    ours, expected = ours.detach().double(), expected.double()
    if ours.shape != expected.shape:
        raise DataError(
            f"{case}: {quantity} has shape {tuple(ours.shape)}, expected {tuple(expected.shape)}"
        )
    tolerance = TOLERANCES[quantity]
    difference = (ours - expected).abs()
    excess = difference - tolerance.absolute - tolerance.relative * expected.abs()
    if not ours.isfinite().all():
        return Comparison(case, quantity, float("inf"), float("inf"))
    return Comparison(case, quantity, float(difference.max()), float(excess.max()))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
