"""This library's side: `lcmt-train` itself, whose loop is held between windows."""

import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from lightconv_mt import __version__, cli, training
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.monitor import SilentMonitor
from lightconv_mt.train.signals import SignalFlag
from lightconv_mt.train.state import TrainState
from peers import job as recipe
from peers.corpus import TOKENIZER
from peers.job import SIZES, Job
from peers.windows import Windows

NEVER = 10**9


class WindowMonitor(SilentMonitor):
    """Is told of every step."""

    def __init__(self, windows: Windows) -> None:
        """Keep the other end."""
        self._windows = windows

    def metrics(
        self, step: int, values: Mapping[str, float], *, timing: Mapping[str, float] | None = None
    ) -> None:
        """Pass on a step's sums."""
        tokens = round(values["train/tokens_per_step"])
        self._windows.update(tokens, values["train/loss"] * tokens, values["train/nll"] * tokens)


class WindowTrainer(Trainer):
    """The trainer, which reports to the windows of this process."""

    windows: Windows

    def run(self, monitor: SilentMonitor, signals: SignalFlag) -> TrainState:
        """Train until the windows end the process."""
        self.windows.open(
            {
                "version": f"lightconv_mt {__version__}",
                "parameters": sum(each.numel() for each in self.model.parameters()),
                "target_tokens": int(self.batcher.pairs.tgt_lengths.sum()),
            }
        )
        return super().run(WindowMonitor(self.windows), signals)


def words(job: Job) -> list[str]:
    """What `lcmt-train` is called with."""
    size = SIZES[job.size]
    kernels = ",".join(map(str, size.kernel_sizes))
    convolution = [
        f"model.mixer.encoder_kernel_sizes=[{kernels}]",
        f"model.mixer.decoder_kernel_sizes=[{kernels}]",
        "model.mixer.encoder_glu=false",
        "model.mixer.decoder_glu=false",
        f"model.mixer.weight_dropout={recipe.INNER_DROPOUT}",
    ]
    return [
        f"run_dir={job.scratch}/run",
        f"seed={job.seed}",
        "data=multi30k",
        f"data.cache_dir={job.corpus}",
        "tokenizer=bpe_8k",
        f"tokenizer.src_model={Path(job.corpus) / TOKENIZER}",
        "model=tiny",
        f"model/mixer={job.model}",
        *(convolution if job.model != "attention" else []),
        f"model.dim={size.dim}",
        f"model.ffn_dim={size.ffn_dim}",
        f"model.num_heads={size.num_heads}",
        f"model.encoder_layers={size.layers}",
        f"model.decoder_layers={size.layers}",
        "model.tying=all",
        f"model.dropout={recipe.DROPOUT}",
        f"model.attention_dropout={recipe.INNER_DROPOUT}",
        "optim=adam",
        f"optim.lr={recipe.PEAK_LR}",
        f"optim.beta1={recipe.BETAS[0]}",
        f"optim.beta2={recipe.BETAS[1]}",
        f"optim.eps={recipe.EPS}",
        "schedule=inverse_sqrt",
        f"schedule.warmup_steps={recipe.WARMUP_UPDATES}",
        f"schedule.warmup_init_lr={recipe.FIRST_LR}",
        f"batch.max_tokens={recipe.MAX_TOKENS}",
        f"train.label_smoothing={recipe.LABEL_SMOOTHING}",
        "train.log_every_steps=1",
        f"train.max_steps={NEVER}",
        f"train.validate_every_steps={NEVER}",
        f"checkpoint.save_every_steps={NEVER}",
        "runtime=cpu",
        f"runtime.precision={job.precision}",
        f"runtime.threads={job.threads}",
    ]


def main() -> int:
    """Train until there are no more commands."""
    WindowTrainer.windows = Windows()
    with mock.patch.object(training, "Trainer", WindowTrainer):
        return cli.main("train", words(Job.of_process()))


if __name__ == "__main__":
    sys.exit(main())
