"""Inferloom: many language models behind one API."""

__version__ = "0.1.0"
