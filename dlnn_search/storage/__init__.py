"""The database: Optuna's trials, and beside them the budget, curves, workers and ledger."""
