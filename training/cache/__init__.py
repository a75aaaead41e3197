"""Decoded clips on disk, so that an epoch reads pixels and decodes nothing. No torch.

store     one file per clip: found by its source's identity and the frames and size that were decoded
build     `python -m training.cache`: fill it for all splits at once, go on after Ctrl-C, remove what is stale
"""
