"""A cohort in one zarr v3 store: for object storage, and for many readers of one place.

The rows of all files stand one after the other in sharded arrays (``features``, ``coords``, ``tissue_fraction``); a
table in the root's attributes says where each file's rows begin and what its own attributes were. Chunks carry a
CRC-32C, and a lost shard reads as an error, not as zeros.
"""

from histotl.store.zarr_reader import Cohort, CohortEntry, open_cohort
from histotl.store.zarr_writer import write_cohort

__all__ = ["Cohort", "CohortEntry", "open_cohort", "write_cohort"]
