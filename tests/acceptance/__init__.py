"""dlnn-search as its user meets it: through its command line, in a folder of their own."""
