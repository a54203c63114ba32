"""Sequence-to-sequence training with lightweight and dynamic convolutions (Wu et al., 2019).

Shapes are written with these letters everywhere: **B** sentences, **N** = B x beam, **S** source
length, **T** target or generic length, **C** channels (`dim`), **H** heads, **K** kernel width,
**V** vocabulary. Activations are batch-first, `(B, T, C)`. A `mask` is `bool` with `True` = real
token.
"""

__version__ = "0.1.0"
