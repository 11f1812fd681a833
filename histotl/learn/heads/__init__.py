"""Plug-ins: heads. ``base.py`` holds the contract."""
