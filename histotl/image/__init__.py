"""Tiles become comparable: stain normalisation and augmentation."""
