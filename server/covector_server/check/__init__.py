"""Checking a store at rest, without trusting a byte of it: what ``covector fsck`` runs."""
