"""The contract between slides and heads: the embeddings file. h5py and zarr are imported in this room only."""
