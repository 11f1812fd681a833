"""Plug-ins: ways to say what each tile did to an answer. ``base.py`` holds the contract."""
