"""The use cases, and the processes that carry them out."""
