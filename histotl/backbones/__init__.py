"""Pixels become vectors. ``base.py`` holds the contract; timm is imported in this room only."""
