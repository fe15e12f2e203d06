"""HTTP: OpenAI's API, model lifecycle, health and metrics, over a catalog of models."""
