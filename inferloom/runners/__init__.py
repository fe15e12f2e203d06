"""ModelRunner and its implementations: `local` over a worker process."""
