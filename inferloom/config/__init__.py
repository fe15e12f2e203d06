"""The configuration: its schema, loading, editing and migration."""
