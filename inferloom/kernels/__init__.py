"""Operators with one signature each: a torch reference, and faster ones beside it."""
