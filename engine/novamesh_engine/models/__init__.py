"""The one MoE decoder and what it needs: config, batch, layers, attention, experts.

A family is a row of traits in `config`, never a class. This module imports nothing, so that reading
a config does not load torch.
"""
