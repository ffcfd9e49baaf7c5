"""Weights from disk: safetensors only, memory-mapped, checked before a byte is used."""
