"""The procedural corpus: every item is generated from a seed, and its answer is computed.

Rules: no clock, no files, no global randomness; what is held out for the evaluation is decided by
hashes in `split`, so no list of training items is needed to keep the two sets apart.
"""
