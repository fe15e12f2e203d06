"""Conformance kits for implementations of our seams: ours and users' own."""

from inferloom.testing.runner import check_runner

__all__ = ["check_runner"]
