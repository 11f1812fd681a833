"""Plug-ins: balancing. ``base.py`` holds the contract."""
