"""Approximate search structures: one contract, one backend a file."""
