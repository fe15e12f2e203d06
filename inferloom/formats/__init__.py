"""Checkpoints: safetensors and GGUF, from whatever a source is to files that a worker can map.

Gateway side (no torch, no numpy): `prepare.locate`, `checkpoint`, `folders`, `gguf_cache`. In a process of its own:
`python -m inferloom.formats.prepare`, which converts. In the worker: `weights`.
"""
