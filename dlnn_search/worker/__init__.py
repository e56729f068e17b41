"""A worker process and the life of one trial in it."""
