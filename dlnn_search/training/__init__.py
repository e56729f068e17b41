"""Training one config: fast, resumable, and knowing nothing of a search."""
