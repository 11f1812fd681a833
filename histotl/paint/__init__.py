"""Painted slides: H&E-like colorectal tissue with known truth, for the demo and for tests.

Nothing here is real tissue. Densities of two dyes are painted (glands, nuclei, mucin, stroma), and their colour follows
from Beer-Lambert absorption in the stain of one of two painted sites.
"""
