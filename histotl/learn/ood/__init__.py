"""Plug-ins: ood. ``base.py`` holds the contract."""
