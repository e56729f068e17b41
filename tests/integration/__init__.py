"""Real databases, real data sets, real training."""
