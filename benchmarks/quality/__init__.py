"""How well the quality figures find what was done to clean tiles."""
