"""Questions on their way to an answer: filter, scan, re-score, top and bottom."""
