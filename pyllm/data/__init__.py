"""Text in, batches out: corpus -> token shards -> windows or packed rows -> Batch."""
