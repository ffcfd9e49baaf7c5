"""The recipe that makes nova-pico: corpus, tokenizer, training, export and evaluation.

Rules: everything follows from a preset and a seed; nothing is downloaded; no pickle is read or
written. Importing this package does no work and needs no torch.
"""
