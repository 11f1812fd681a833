"""The embeddings file: the contract between what makes features and what learns from them.

Write with `EmbeddingsWriter`, read with `open_embeddings`, verify with `check_file`, resume with `is_current`.
"""

from histotl.store.extras import QualitySpec, ViewSpec
from histotl.store.reader import Embeddings, open_embeddings
from histotl.store.schema import EmbeddingsMeta
from histotl.store.verify import check_file, is_current
from histotl.store.writer import EmbeddingsWriter

__all__ = [
    "Embeddings",
    "EmbeddingsMeta",
    "EmbeddingsWriter",
    "QualitySpec",
    "ViewSpec",
    "check_file",
    "is_current",
    "open_embeddings",
]
