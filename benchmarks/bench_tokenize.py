"""Tokenizing and training a tokenizer: pyllm against the `tokenizers` package, one thread each. Text: wikitext-2 and tinyshakespeare
where ../shared/data is, else the standard library's pydoc topics. Rates are bytes of text; the peer gets its fastest call for lines.
"""
import json
import os
from pathlib import Path

from benchmarks.harness import Case
from pyllm.text import ByteLevelBPE, SentencePieceBPE, Unigram, WordPiece
from pyllm.text.tokenizer_json import build
from pyllm.text.write_json import as_json

DATA = Path(__file__).parents[1] / "../shared/data"


def texts():
    """-> {name: text}."""
    found = {path.parent.name: path for path in (DATA / "wikitext-2/valid.txt", DATA / "tinyshakespeare/input.txt") if path.exists()}
    if found:
        return {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    from pydoc_data.topics import topics

    return {"pydoc topics": "\n".join(topics.values())}


def trained_peer(lines, vocab_size):
    """-> what the tokenizers package learns from the same lines, or None where it is not installed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        return None
    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer, peer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    peer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=["<|endoftext|>"],
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return peer


def cases(quick):
    for name, text in texts().items():
        text = text[:200_000] if quick else text
        yield from cases_of(name, text, 1000 if quick else 8000)
        for kind in (WordPiece, SentencePieceBPE, Unigram):
            yield from cases_of_kind(kind, name, text, 1000 if quick else 8000)


def cases_of_kind(kind, name, text, vocab_size):
    """Encoding and offsets of one kind, trained here, read by both."""
    lines, size = text.splitlines(True), len(text.encode())
    ours = kind.train(lines, vocab_size)
    data = json.dumps(as_json(ours))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread
    try:
        from tokenizers import Tokenizer

        peer = Tokenizer.from_str(data)
    except ImportError:
        peer = None
    ids = ours.encode(text)

    def check():
        assert ours.encode_array(text).tolist() == ids
        assert peer is None or [e.ids for e in peer.encode_batch_fast(lines)] == ours.encode_batch(lines)

    def check_offsets():
        spans = ours.encode_offsets(text)[1]
        assert peer is None or list(map(tuple, spans.tolist())) == peer.encode(text).offsets

    def case(what, check, run, rival):
        return Case(f"tokenize {what}", f"{kind.__name__} {name} {size} B, V={vocab_size}",
                    lambda: (run, check, {"tokenizers": rival if peer else None}), bytes=size, unit=len(ids))

    def fresh():
        """A tokenizer that has met no word yet."""
        return build(json.loads(data), {}, {})

    yield case("load + encode", check, lambda: fresh().encode_array(text), lambda: Tokenizer.from_str(data).encode(text))
    yield case("encode", check, lambda: ours.encode_array(text), lambda: peer.encode(text))
    yield case("encode lines", check, lambda: ours.encode_batch(lines), lambda: peer.encode_batch_fast(lines))
    yield case("offsets", check_offsets, lambda: ours.encode_offsets(text), lambda: peer.encode(text).offsets)


def cases_of(name, text, vocab_size):
    lines = text.splitlines(True)
    size = len(text.encode())
    ours, peer = ByteLevelBPE.train(lines, vocab_size), trained_peer(lines, vocab_size)
    ids = ours.encode(text)

    def check_training():
        assert ours.vocab_size <= vocab_size and ours.decode(ids) == text
        assert peer is None or json.loads(peer.to_str())["model"]["vocab"] == ours.vocab

    def check_ids():
        check_training()
        assert ours.encode_array(text).tolist() == ids
        assert peer is None or peer.encode(text).ids == ids

    def check_lines():
        check_training()
        assert peer is None or [e.ids for e in peer.encode_batch_fast(lines)] == ours.encode_batch(lines)

    def case(kind, check, run, rival, unit=0.0):
        return Case(f"tokenize {kind}", f"{name} {size} B, V={vocab_size}", lambda: (run, check, {"tokenizers": rival if peer else None}),
                    bytes=size, unit=unit)

    yield case("train", check_training, lambda: ByteLevelBPE.train(lines, vocab_size), lambda: trained_peer(lines, vocab_size))
    yield case("load + encode", check_ids, lambda: ByteLevelBPE(ours.vocab, ours.merges, ours.added).encode_array(text),
               lambda: peer.encode(text), len(ids))
    yield case("encode", check_ids, lambda: ours.encode_array(text), lambda: peer.encode(text), len(ids))
    yield case("encode lines", check_lines, lambda: ours.encode_batch(lines), lambda: peer.encode_batch_fast(lines), len(ids))
    yield case("decode", check_training, lambda: ours.decode(ids), lambda: peer.decode(ids, skip_special_tokens=False), len(ids))
