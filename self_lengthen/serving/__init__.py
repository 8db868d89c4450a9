"""The server: FastChat controller and API server, vLLM workers with LoRA adapters."""
