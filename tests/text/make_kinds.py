"""Writes kinds.json: ids and offsets that the `tokenizers` package gives for hard texts with small tokenizers that pyllm trained, one of
each kind, on the texts of make_vectors.py. python tests/text/make_kinds.py"""
import json
import sys
from pathlib import Path

FILE = Path(__file__).with_name("kinds.json")
sys.path.insert(0, str(FILE.parents[2]))


def trained():
    """-> {kind: tokenizer}."""
    from pyllm.text import SentencePieceBPE, Unigram, WordPiece

    from tests.text.make_vectors import TRAIN

    return {"WordPiece": WordPiece.train(TRAIN, 300), "SentencePieceBPE": SentencePieceBPE.train(TRAIN, 420, coverage=0.99),
            "Unigram": Unigram.train(TRAIN, 200)}


def make():
    """-> what kinds.json holds."""
    from tokenizers import Tokenizer

    from pyllm.text.write_json import as_json

    from tests.text.make_vectors import CASES

    found = {}
    for kind, ours in trained().items():
        data = as_json(ours)
        peer = Tokenizer.from_str(json.dumps(data))
        found[kind] = {"tokenizer": data, "cases": [[text, peer.encode(text).ids, peer.encode(text).offsets] for text in CASES]}
    return json.loads(json.dumps(found))


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), separators=(",", ":")) + "\n")
