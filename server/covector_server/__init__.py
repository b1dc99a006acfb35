"""covector's server: gradients in sharded Zarr arrays, their state in LMDB, questions over gRPC."""
