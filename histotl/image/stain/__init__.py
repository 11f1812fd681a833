"""Stain normalisers. ``base.py`` holds the contract."""
