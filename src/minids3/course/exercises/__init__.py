"""One module per notebook, named after it: ``nb00_start_here`` for ``00_start_here``."""
