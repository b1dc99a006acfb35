"""The catalog: what the store contains, committed in one place."""
