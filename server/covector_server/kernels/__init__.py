"""Loops over many bytes, compiled from ``native/`` where a compiler was at hand, in numpy and libraries else.

Each function gives the same answer either way; the tests hold the two against each other and against a plain loop.
"""
