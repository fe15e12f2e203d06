"""Inside a worker: contexts, KV pages, prefix cache, scheduler, sampling, grammars."""
