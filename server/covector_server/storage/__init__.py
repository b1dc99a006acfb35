"""Files: sharded Zarr arrays of rows, the row log of keys, texts and metadata, and the views that readers take."""
