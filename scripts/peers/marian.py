"""Marian of Hugging Face's transformers, in a plain loop."""

import torch
import transformers
from torch import Tensor

from peers import job as recipe
from peers.job import SIZES, Job
from peers.plain_loop import BOS, PAD, VOCABULARY, train
from peers.windows import Windows

EOS = 2


def main() -> None:
    """Train until there are no more commands."""
    windows, job = Windows(), Job.of_process()
    torch.manual_seed(job.seed)
    size = SIZES[job.size]
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=VOCABULARY,
            d_model=size.dim,
            encoder_layers=size.layers,
            decoder_layers=size.layers,
            encoder_attention_heads=size.num_heads,
            decoder_attention_heads=size.num_heads,
            encoder_ffn_dim=size.ffn_dim,
            decoder_ffn_dim=size.ffn_dim,
            activation_function="relu",
            dropout=recipe.DROPOUT,
            attention_dropout=recipe.INNER_DROPOUT,
            activation_dropout=0.0,
            scale_embedding=True,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            init_std=size.dim**-0.5,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            forced_eos_token_id=EOS,
            decoder_start_token_id=BOS,
        )
    )

    def forward(src: Tensor, decoder_input: Tensor) -> Tensor:
        found = model(
            input_ids=src,
            attention_mask=src != PAD,
            decoder_input_ids=decoder_input,
            use_cache=False,
        )
        return found.logits

    train(job, windows, model, forward, version=f"transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
