"""Where worker processes run: a supervisor, in the foreground or detached."""
