"""What stain normalisation does to a set of slides, and how sturdy features are under stain jitter."""
