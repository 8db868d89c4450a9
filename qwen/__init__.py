"""What the Qwen family has of its own: `config.py`, `prompts/`, thin step scripts."""
