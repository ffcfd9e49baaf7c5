"""NF4 in bitsandbytes' byte layout, and the model profile: a folder whose every byte is named.

This module imports nothing: reading a profile must not load torch.
"""
