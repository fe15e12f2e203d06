"""Executors: one decoder and one encoder, steered by specs that are read from a checkpoint's configuration."""
