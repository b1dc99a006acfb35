"""Fits: what a scorer learns of stored rows, learnt in streams, stored, and applied to queries."""
