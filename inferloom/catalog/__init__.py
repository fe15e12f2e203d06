"""Which models exist, what they are called, which are loaded and why."""
