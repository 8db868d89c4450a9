"""Self-Lengthen (arXiv 2410.23933): a chat model learns to write long from its own answers."""

__version__ = "0.1.0"
