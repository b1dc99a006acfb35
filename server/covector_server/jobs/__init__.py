"""Long work, with progress, cancel and result."""
