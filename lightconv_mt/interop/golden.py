"""Compares this library with recorded inputs and outputs of fairseq: any golden folder."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import DecodeConfig, beam_search
from lightconv_mt.errors import DataError
from lightconv_mt.interop.fairseq import parameter_name, read_architecture, rename_parameters
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import Backend, dynamicconv, lightconv, mask_outside_taps
from lightconv_mt.train.checkpoint import load_model_tensors
from lightconv_mt.train.loss import LabelSmoothedLoss

logger = logging.getLogger(__name__)


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
}


class Comparison(NamedTuple):
    """One compared quantity of one case.

    Attributes:
        case: where it stands in the folder.
        quantity: a key of `TOLERANCES`.
        error: worst absolute difference (beam hypothesis: number that differ).
        excess: by how much the worst element exceeds its tolerance; at most 0 when it passes.
    """

    case: str
    quantity: str
    error: float
    excess: float


def compare_folder(folder: Path, *, backend: Backend, dtype: torch.dtype) -> Iterator[Comparison]:
    """Run every case of a golden folder.

    Args:
        folder: holds `conv_*.json` with tensors beside them, and `model_*` folders.
        backend: implementation of the convolutions.
        dtype: float32 or float64 to compute in.

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
        yield from _compare_model(path, backend, dtype)


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


def _compare_model(folder: Path, backend: Backend, dtype: torch.dtype) -> Iterator[Comparison]:
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
    yield from _compare_beams(folder, model, ids)


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


def _compare_beams(
    folder: Path, model: Seq2SeqTransformer, ids: SpecialIds
) -> Iterator[Comparison]:
    """Hypotheses and scores of every recorded beam search."""
    beams = json.loads((folder / "beam.json").read_text())
    width = max(len(tokens) for tokens in beams["src"])
    src = torch.tensor([tokens + [ids.pad] * (width - len(tokens)) for tokens in beams["src"]])
    src_mask = src != ids.pad
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
        with torch.inference_mode():
            state = model.start(model.encode(src, src_mask), src_mask, config.beam_size)
            found = beam_search(
                model.decode_step, state, src_lengths=src_mask.sum(dim=1), ids=ids, config=config
            )
        for sentence, (ours, theirs) in enumerate(zip(found, run["hypotheses"], strict=True)):
            case = f"{folder.name}/beam {number}, sentence {sentence}"
            differing = sum(
                list(mine.tokens) != list(other["tokens"])
                for mine, other in zip(ours, theirs, strict=True)
            )
            yield Comparison(case, "beam hypothesis", differing, differing)
            scores = torch.tensor([hypothesis.score for hypothesis in ours])
            yield _compare(
                case, "beam score", scores, torch.tensor([other["score"] for other in theirs])
            )


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
