"""Text in, batches out: corpus -> token shards -> windows or packed rows -> Batch. NumPy only."""
from pyllm.data.batch import Batch
from pyllm.data.corpus import read_documents
from pyllm.data.loader import Loader, validation
from pyllm.data.packing import pack
from pyllm.data.shards import TokenShards, in_memory, open_shards, split, tokenize, write_shards

__all__ = ["Batch", "Loader", "TokenShards", "in_memory", "open_shards", "pack", "read_documents", "split", "tokenize",
           "validation", "write_shards"]
