"""Stands in for torchaudio, of which there is no CPU build beside our torch.

LLaMA-Factory imports the name at start; text fine-tuning never calls it.
"""
