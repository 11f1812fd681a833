"""Augmentations. ``base.py`` holds the contract."""
