"""Fine-tuning of both roles with LLaMA-Factory."""
