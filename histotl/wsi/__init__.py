"""A slide becomes tiles."""
