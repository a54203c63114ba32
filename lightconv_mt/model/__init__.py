"""The encoder-decoder around the token mixers."""
