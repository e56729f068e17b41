"""Pruners for any Optuna study, and when a search has converged."""
