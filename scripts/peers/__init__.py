"""Training in processes of their own: this library's, and other toolkits' beside it."""
