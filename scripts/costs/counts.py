"""Parameters, multiply-adds and bytes of every part of a training step, by formulas."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from lightconv_mt.data.batching import Batch
from lightconv_mt.mixers import MixerSlot
from lightconv_mt.model.decoder import DecoderLayer
from lightconv_mt.model.embedding import TokenEmbedding
from lightconv_mt.model.encoder import EncoderLayer
from lightconv_mt.model.layers import FeedForward, SourceAttention, Sublayer
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.train.loss import chunk_rows
from mixer_costs import Product, count_layer

EMBEDDING, ENCODER_MIXERS, ENCODER_FFN = "embedding", "encoder mixers", "encoder ffn"
DECODER_MIXERS, SOURCE_ATTENTION = "decoder mixers", "source attention"
DECODER_FFN, NORMS = "decoder ffn", "norms, dropout, residual"
LOSS, OPTIMISER = "projection and loss", "optimiser"
PARTS = (
    *(EMBEDDING, ENCODER_MIXERS, ENCODER_FFN, DECODER_MIXERS, SOURCE_ATTENTION),
    *(DECODER_FFN, NORMS, LOSS, OPTIMISER),
)
# Of Adam with clipping, in float32: read a gradient for the norm, then the weight, gradient and
# both moments; write all but the gradient.
OPTIMISER_BYTES = 4 * (1 + 4 + 3)


@dataclass(frozen=True)
class Shape:
    """A micro-batch.

    Attributes:
        sentences: B, those of R-Drop twice.
        src: S, padding included.
        tgt: T, padding included.
        tokens: real target tokens, each counted once.
        rows: of the projection to the vocabulary, real tokens of all B sentences.
    """

    sentences: int
    src: int
    tgt: int
    tokens: int
    rows: int

    @classmethod
    def of(cls, batch: Batch, *, twice: bool) -> "Shape":
        """That of a batch, each of whose sentences R-Drop may have read twice."""
        copies = 2 if twice else 1
        sentences, src = batch.src.shape
        tgt, tokens = batch.tgt_in.shape[1], batch.num_tokens
        return cls(copies * sentences, src, tgt, tokens, copies * tokens)


@dataclass
class Count:
    """What one part needs in one step of one micro-batch.

    Attributes:
        parameters: that belong to it.
        products: with weights, in the forward pass; the backward pass has two of each.
        repeats: how often each product is made.
        others: multiply-adds between positions in the forward pass (convolution, attention).
        numbers: activations read or written, forward and backward, each once.
        wide_bytes: bytes that are float32 in any precision.
    """

    parameters: int = 0
    products: list[Product] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)
    others: float = 0.0
    numbers: float = 0.0
    wide_bytes: float = 0.0

    @property
    def multiply_adds(self) -> float:
        """Of the forward pass; with the backward pass three times as many."""
        products = zip(self.products, self.repeats, strict=True)
        return self.others + sum(each.multiply_adds * times for each, times in products)

    def moved(self, width: int) -> float:
        """Bytes moved where an activation has `width`."""
        return self.numbers * width + self.wide_bytes

    def add_products(self, products: Iterable[Product], *, times: float = 1.0) -> None:
        """Count products, what they read and write, and what is read and written between them.

        Forward: input, weights and output. Backward: the output's gradient and the weights give the
        input's, which with the input gives that of the weights, kept in float32. Between two
        products, each output is read once and each input written once; backward, outputs and the
        inputs' gradients are read and the outputs' gradients are written.
        """
        products = list(products)
        for rows, inner, outer in products:
            self.products.append(Product(rows, inner, outer))
            self.repeats.append(times)
            self.numbers += times * (3 * rows * (inner + outer) + 2 * inner * outer)
            self.wide_bytes += times * 4 * inner * outer
        read = sum(each.rows * each.outer for each in products[:-1])
        written = products[-1].rows * products[-1].inner if len(products) > 1 else 0
        self.numbers += times * (3 * read + 2 * written)


def count_parts(
    model: Seq2SeqTransformer, shape: Shape, *, accumulate: int = 1
) -> dict[str, Count]:
    """Count every part, by its name.

    Args:
        model: any device.
        shape: of the micro-batch.
        accumulate: micro-batches that share a step of the optimiser.
    """
    counts = {part: Count() for part in PARTS}
    sources, targets = shape.sentences * shape.src, shape.sentences * shape.tgt
    tables = {id(table): table for table in (model.src_embedding, model.tgt_embedding)}
    counts[EMBEDDING] = _embeddings(tables.values(), sources, targets, model)
    _add_mixers(counts[ENCODER_MIXERS], model, "encoder", shape)
    _add_mixers(counts[DECODER_MIXERS], model, "decoder", shape)
    for layer in model.encoder.layers:
        assert isinstance(layer, EncoderLayer)
        _add_feed_forward(counts[ENCODER_FFN], layer.feed_forward, sources)
    for layer in model.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        _add_feed_forward(counts[DECODER_FFN], layer.feed_forward, targets)
        _add_source_attention(counts[SOURCE_ATTENTION], layer.source_attention, shape)
    _add_sublayers(counts[NORMS], model, sources, targets)
    counts[LOSS] = _loss(model, shape)
    total = sum(count.parameters for count in counts.values())
    counts[OPTIMISER].wide_bytes = OPTIMISER_BYTES * total / accumulate
    return counts


def _add_feed_forward(count: Count, module: FeedForward, rows: int) -> None:
    count.parameters += _size(module)
    count.add_products(_linear(each, rows) for each in (module.inner, module.outer))


def _add_source_attention(count: Count, module: SourceAttention, shape: Shape) -> None:
    sources, targets = shape.sentences * shape.src, shape.sentences * shape.tgt
    read = _linear(module.key, sources), _linear(module.value, sources)
    asked = _linear(module.query, targets), _linear(module.output_projection, targets)
    count.parameters += _size(module)
    count.add_products([*read, *asked])
    count.others += 2.0 * targets * shape.src * module.query.weight.shape[0]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _linear(linear: nn.Linear, rows: int) -> Product:
    outer, inner = linear.weight.shape
    return Product(rows, inner, outer)


def _embeddings(
    tables: Iterable[TokenEmbedding], sources: int, targets: int, model: Seq2SeqTransformer
) -> Count:
    """Rows looked up and written; backward, their gradients read and added to a table of zeros."""
    dims = model.src_embedding.weight.shape[1], model.tgt_embedding.weight.shape[1]
    numbers = sources * dims[0] + targets * dims[1]
    cleared = sum(_size(table) for table in tables)
    return Count(parameters=cleared, wide_bytes=4.0 * (2 * numbers + 3 * numbers + cleared))


def _add_mixers(count: Count, model: Seq2SeqTransformer, side: str, shape: Shape) -> None:
    config, causal = model.config, side == "decoder"
    layers = (model.decoder if causal else model.encoder).layers
    length = shape.tgt if causal else shape.src
    dim = (config.decoder_dim if causal else None) or config.dim
    heads = (config.decoder_num_heads if causal else None) or config.num_heads
    ffn_dim = (config.decoder_ffn_dim if causal else None) or config.ffn_dim
    for layer in range(len(layers)):
        slot = MixerSlot(
            layer=layer, num_layers=len(layers), causal=causal, num_heads=heads, ffn_dim=ffn_dim
        )
        cost = count_layer(config.layer_mixer(side, layer), dim=dim, slot=slot, length=length)
        count.parameters += cost.parameters
        many = [each._replace(rows=each.rows * shape.sentences) for each in cost.products]
        count.add_products(many)
        with_weights = sum(each.multiply_adds for each in many)
        count.others += cost.multiply_adds * length * shape.sentences - with_weights


def _add_sublayers(count: Count, model: Seq2SeqTransformer, sources: int, targets: int) -> None:
    """Forward: the stream and the function's output are read, the normalised sum is written.

    Backward: the gradient and what was normalised are read, both gradients are written. The stream
    is float32, what a function gives is not.
    """
    for stack in (model.encoder, model.decoder):
        inner = [each for each in stack.modules() if isinstance(each, Sublayer)]
        count.parameters += sum(map(_size, [*inner, stack.norm]))
    encoder = len(model.encoder.layers) * 2 * sources * model.src_embedding.weight.shape[1]
    decoder = len(model.decoder.layers) * 3 * targets * model.tgt_embedding.weight.shape[1]
    count.numbers += 2.0 * (encoder + decoder)
    count.wide_bytes += 4.0 * 5 * (encoder + decoder)


def _loss(model: Seq2SeqTransformer, shape: Shape) -> Count:
    """Weights are read, and their gradient written, once a chunk of rows.

    Logits are not counted: chunks could be so small that these stay in cache.
    """
    vocab_size, dim = model.output_weight.shape
    own = 0 if model.output_projection is None else model.output_projection.numel()
    device = model.output_weight.device
    rows = min(chunk_rows(vocab_size, device=device), shape.rows)
    chunks = shape.rows / rows
    count = Count(parameters=own, products=[Product(rows, dim, vocab_size)], repeats=[chunks])
    count.numbers = 2.0 * shape.rows * dim + chunks * 2 * vocab_size * dim
    count.wide_bytes = 4.0 * chunks * 2 * vocab_size * dim
    return count
