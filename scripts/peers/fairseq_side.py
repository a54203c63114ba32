"""fairseq 0.12.2: its own data, model, criterion and trainer, as `fairseq-train` joins them."""

import argparse
import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any

# What fairseq imports is imported before dataclasses are changed for fairseq alone.
import hydra
import omegaconf
import torch

from peers import job as recipe
from peers.job import SIZES, Job
from peers.windows import Windows

CONVOLUTIONS = {"lightconv": "lightweight", "dynamicconv": "dynamic"}


def mend_fairseq() -> None:
    """Let fairseq 0.12.2, of 2022, be imported by Python 3.11.

    Its dataclasses have instances of others as defaults, which Python refuses since 3.11 where
    those cannot be hashed; so they can be. No other change is needed, and none is made.
    """
    plain = dataclasses.dataclass

    def hashable(cls: Any = None, /, **options: Any) -> Any:
        return plain(cls, **{"unsafe_hash": True, **options})

    dataclasses.dataclass = hashable
    try:
        import fairseq  # noqa: F401
    finally:
        dataclasses.dataclass = plain


def words(job: Job, data: Path) -> list[str]:
    """What `fairseq-train` would be called with."""
    size = SIZES[job.size]
    kernels = str(list(size.kernel_sizes))
    model = ["--arch", "transformer"]
    if job.model in CONVOLUTIONS:
        model = ["--arch", "lightconv_iwslt_de_en"]
        model += ["--weight-dropout", str(recipe.INNER_DROPOUT)]
        for side in ("encoder", "decoder"):
            model += [f"--{side}-conv-type", CONVOLUTIONS[job.model], f"--{side}-glu", "0"]
            model += [f"--{side}-kernel-size-list", kernels, f"--{side}-conv-dim", str(size.dim)]
    for side in ("encoder", "decoder"):
        model += [f"--{side}-layers", str(size.layers), f"--{side}-embed-dim", str(size.dim)]
        model += [f"--{side}-ffn-embed-dim", str(size.ffn_dim)]
        model += [f"--{side}-attention-heads", str(size.num_heads)]
    return [
        *(str(data), "--source-lang", "en", "--target-lang", "de", *model),
        *("--share-all-embeddings", "--dropout", str(recipe.DROPOUT)),
        *("--attention-dropout", str(recipe.INNER_DROPOUT)),
        *("--criterion", "label_smoothed_cross_entropy"),
        *("--label-smoothing", str(recipe.LABEL_SMOOTHING)),
        *("--optimizer", "adam", "--adam-betas", str(recipe.BETAS), "--adam-eps", str(recipe.EPS)),
        *("--lr", str(recipe.PEAK_LR), "--lr-scheduler", "inverse_sqrt"),
        *("--warmup-updates", str(recipe.WARMUP_UPDATES)),
        *("--warmup-init-lr", str(recipe.FIRST_LR)),
        *("--max-tokens", str(recipe.MAX_TOKENS), "--seed", str(job.seed)),
        # As this library's default: batches are made where they are used.
        *("--cpu", "--num-workers", "0", "--no-save", "--no-progress-bar"),
    ]


def binarise(corpus: Path) -> Path:
    """Make fairseq's data of the pieces where it is not there yet; its folder."""
    folder = corpus / "fairseq"
    if not folder.exists():
        from fairseq import options
        from fairseq_cli import preprocess

        unfinished = folder.with_suffix(".unfinished")
        parser = options.get_preprocessing_parser()
        dictionary = str(corpus / "dict.txt")
        preprocess.main(
            parser.parse_args(
                [
                    *("--source-lang", "en", "--target-lang", "de", "--joined-dictionary"),
                    *("--trainpref", str(corpus / "train"), "--destdir", str(unfinished)),
                    *("--srcdict", dictionary, "--workers", "1"),
                ]
            )
        )
        os.rename(unfinished, folder)
    return folder


def main() -> None:
    """Train until there are no more commands."""
    windows, job = Windows(), Job.of_process()
    print(f"omegaconf {omegaconf.__version__}, hydra {hydra.__version__}", file=sys.stderr)
    torch.set_num_threads(job.threads)
    mend_fairseq()
    import fairseq
    from fairseq import options, tasks, utils
    from fairseq.data import iterators
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.logging import metrics
    from fairseq.trainer import Trainer

    parser = options.get_training_parser()
    namespace: argparse.Namespace = options.parse_args_and_arch(
        parser, words(job, binarise(Path(job.corpus)))
    )
    config = convert_namespace_to_omegaconf(namespace)
    utils.set_torch_seed(job.seed)
    task = tasks.setup_task(config.task)
    model = task.build_model(config.model)
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    epochs = trainer.get_train_iterator(epoch=1, load_dataset=True)
    windows.open(
        {
            "version": f"fairseq {fairseq.__version__}",
            "parameters": sum(each.numel() for each in model.parameters()),
            "target_tokens": int(task.dataset("train").tgt.sizes.sum()),
        }
    )
    while True:
        trainer.begin_epoch(epochs.next_epoch_idx)
        updates = iterators.GroupedIterator(epochs.next_epoch_itr(), 1)
        for samples in updates:
            with metrics.aggregate("train_inner"):
                logged = trainer.train_step(samples)
            tokens = int(samples[0]["ntokens"])
            # It logs bits a token.
            nats = math.log(2) * tokens
            windows.update(tokens, logged["loss"] * nats, logged["nll_loss"] * nats)


if __name__ == "__main__":
    main()
