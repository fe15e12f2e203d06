"""ModelRunner and its implementations."""
