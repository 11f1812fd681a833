"""Tiles become comparable: stain normalisation, augmentation, quality."""
