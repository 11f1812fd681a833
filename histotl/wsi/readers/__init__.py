"""Plug-ins that open slide files. ``base.py`` holds the contract."""
