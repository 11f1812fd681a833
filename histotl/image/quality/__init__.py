"""Quality measures: per-tile figures. ``base.py`` holds the contract."""
