"""What the Llama family has of its own: `config.py`, `prompts/`, thin step scripts."""
