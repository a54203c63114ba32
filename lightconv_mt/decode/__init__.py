"""Model to text: beam search over logits, and the translator around it."""
