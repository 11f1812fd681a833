"""Slides in, embeddings files out: the engine."""
