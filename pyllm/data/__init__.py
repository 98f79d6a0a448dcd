"""Text in, batches out: corpus -> token shards -> windows -> Batch, and examples -> rows -> padded or packed Batch. NumPy only."""
from pyllm.data.batch import IGNORED, Batch
from pyllm.data.batches import Batches, mixture, row_batches
from pyllm.data.collate import collate, collate_packed
from pyllm.data.corpus import read_documents
from pyllm.data.corruptions import Corrupted
from pyllm.data.examples import Examples, find_splits, label_names, read_examples
from pyllm.data.loader import Loader, validation
from pyllm.data.packing import pack
from pyllm.data.render import Row, prepare, render, rendered, windows
from pyllm.data.shards import TokenShards, in_memory, open_shards, split, tokenize, write_shards

__all__ = ["IGNORED", "Batch", "Batches", "Corrupted", "Examples", "Loader", "Row", "TokenShards", "collate", "collate_packed",
           "find_splits", "in_memory", "label_names", "mixture", "open_shards", "pack", "prepare", "read_documents", "read_examples",
           "render", "rendered", "row_batches", "split", "tokenize", "validation", "windows", "write_shards"]
