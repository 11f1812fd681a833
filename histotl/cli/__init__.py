"""The command line: one file per verb. Printing happens here only."""
