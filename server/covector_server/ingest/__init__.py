"""Rows on their way to disk: validation, the commit order, and the one thread that writes."""
