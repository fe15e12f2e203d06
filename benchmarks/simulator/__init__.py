"""A fake clock, generated traces, and the policies that decide who is loaded next."""
