"""Answers become evidence: metrics, intervals, the report."""
