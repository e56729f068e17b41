"""The search: how trials are suggested, trained, judged and told."""
