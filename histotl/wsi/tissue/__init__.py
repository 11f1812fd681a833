"""Plug-ins that find tissue on a slide. ``base.py`` holds the contract."""
