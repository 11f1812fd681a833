"""Plug-ins: aggregators. ``base.py`` holds the contract."""
