"""Tests of histotl. A regular package, so that a test package that some library installs is never taken for it."""
