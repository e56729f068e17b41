"""`python -m dlnn_search` is `dlnn-search`."""

from dlnn_search.cli import main

main()
