"""Tokenizing and training: pyllm against the `tokenizers` package on one thread, in the same run. python benchmarks/bench_tokenize.py

Text: wikitext-2 and tinyshakespeare where ../shared/data is, else the standard library's pydoc topics. A case is first checked (equal ids),
then timed. The peer gets its fastest call for documents, encode_batch_fast, with one thread, next to one call on the whole text.
"""
import json
import os
import statistics
import time
from pathlib import Path

DATA = Path(__file__).parents[1] / "../shared/data"


def median_ms(call, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def texts():
    """-> {name: text}."""
    found = {name: path for name in ("wikitext-2/valid.txt", "tinyshakespeare/input.txt") if (path := DATA / name).exists()}
    if found:
        return {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    from pydoc_data.topics import topics

    return {"pydoc_data.topics": "\n".join(topics.values())}


def trained_peer(lines, vocab_size):
    """-> what the tokenizers package learns from the same lines, or None where it is not installed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread; read when the package first works
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        return None
    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer, peer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    peer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=["<|endoftext|>"],
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return peer


def run(quick=False):
    """-> list of records: name, shape (bytes of text, vocabulary), threads, checked, median_ms, mb_s, and the ratio to tokenizers."""
    from pyllm.text import ByteLevelBPE

    records, repeats = [], 1 if quick else 3
    for name, text in texts().items():
        lines, size, vocab_size = text.splitlines(True), len(text.encode()), 2000 if quick else 8000
        ours, peer = ByteLevelBPE.train(lines, vocab_size), trained_peer(lines, vocab_size)

        def record(kind, checked, call, peer_call):
            ms = median_ms(call, 3 * repeats)
            entry = {"name": f"{kind} {name}", "shape": [size, vocab_size], "threads": 1, "checked": checked, "median_ms": ms,
                     "mb_s": size / ms / 1e3}
            if peer:
                entry["ratio_tokenizers"] = median_ms(peer_call, repeats) / ms
            records.append(entry)

        same = peer and json.loads(peer.to_str())["model"]["vocab"] == ours.vocab
        record("train", bool(same) if peer else ours.vocab_size <= vocab_size, lambda: ByteLevelBPE.train(lines, vocab_size),
               lambda: trained_peer(lines, vocab_size))
        ids = ours.encode(text)
        checked = ours.decode(ids) == text and (not peer or peer.encode(text).ids == ids)
        fresh = [ByteLevelBPE(ours.vocab, ours.merges, ours.added) for _ in range(3 * repeats)]
        record("encode, cold cache", checked, lambda: fresh.pop().encode_array(text), lambda: peer.encode(text))
        record("encode", checked, lambda: ours.encode_array(text), lambda: peer.encode(text))
        checked = checked and (not peer or [e.ids for e in peer.encode_batch_fast(lines)] == ours.encode_batch(lines))
        record("encode lines", checked, lambda: ours.encode_batch(lines), lambda: peer.encode_batch_fast(lines))
        record("decode", checked, lambda: ours.decode(ids), lambda: peer.decode(ids, skip_special_tokens=False))
    return records


if __name__ == "__main__":
    for found in run():
        print(json.dumps(found))
