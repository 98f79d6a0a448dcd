"""Rows -> a Batch: padded to the longest, or packed side by side. Padding is what `segments` says, never a token's id."""
import numpy as np

from pyllm.data.batch import IGNORED, Batch
from pyllm.data.packing import pack
from pyllm.data.render import rows_of


def collate(items, *, side="right", multiple=1, length=None, start=None):
    """B Rows, or B / 2 pairs of them -> Batch (B, T): T is the longest row, rounded up to a multiple, or `length`.

    side: where the padding is, "right" or "left". start: the id an encoder-decoder's answer begins with, its decoder_start_token_id.
    targets: shifted tokens where they are learned, (B, U) of an answer, (B,) of classes, (B, 2) of spans.
    """
    if side not in ("right", "left"):
        raise ValueError(f"collate: side is {side!r}, expected 'right' or 'left'")
    rows = rows_of(items)
    tokens, segments, offsets = _padded([row.tokens for row in rows], side, multiple, length)
    extra = {name: np.array([row.extra[name] for row in rows]) for name in rows[0].extra}
    if rows[0].types is not None:
        extra["types"], _, _ = _padded([row.types for row in rows], side, multiple, length)
    if rows[0].label is not None:
        labels = [row.label if isinstance(row.label, int) else [at + offset for at in row.label] for row, offset in zip(rows, offsets)]
        return Batch(tokens, np.array(labels, np.int32), _needed(segments), extra=extra)
    if rows[0].decoder is not None:
        if start is None:
            raise ValueError("collate: start is None, expected the model's decoder_start_token_id: these rows are an encoder-decoder's")
        targets, decoder_segments, _ = _padded([row.decoder for row in rows], side, multiple, None)
        targets[decoder_segments == 0] = IGNORED
        shifted, _, _ = _padded([np.append(np.int32(start), row.decoder[:-1]) for row in rows], side, multiple, None)
        return Batch(tokens, targets, _needed(segments), shifted, _needed(decoder_segments), extra)
    targets, _, _ = _padded([_shifted(row) for row in rows], side, multiple, length)
    targets[segments == 0] = IGNORED
    return Batch(tokens, targets, _needed(segments), extra=extra)


def collate_packed(rows, length, layout=None):
    """Rows of a decoder -> Batch (R, T): side by side, each a document of its own (`segments`), in as few as best fit finds.

    layout: R lists of indices of rows, where it is known which come together. The last token of a row predicts nothing and takes no room.
    """
    return pack([(row.tokens[:-1], _shifted(row)[:-1]) for row in rows], length, layout)


def _needed(segments):
    """None where every row is full: one document and no padding."""
    return segments if (segments == 0).any() else None


def _shifted(row):
    """(n,) int32: the id that each position predicts; the last predicts nothing."""
    targets = np.full(len(row.tokens), IGNORED, np.int32)
    targets[:-1][row.learned[1:]] = row.tokens[1:][row.learned[1:]]
    return targets


def _padded(arrays, side, multiple, length):
    """-> (B, T) int32 with zeros at padding, segments (B, T) int32, the first column of each row."""
    longest = max(map(len, arrays))
    T = length or -(-longest // multiple) * multiple
    if longest > T:
        raise ValueError(f"collate: a row has {longest} tokens, length is {length}. Hint: max_length of render")
    out, segments = np.zeros((2, len(arrays), T), np.int32)
    offsets = [T - len(a) if side == "left" else 0 for a in arrays]
    for i, (a, at) in enumerate(zip(arrays, offsets)):
        out[i, at:at + len(a)], segments[i, at:at + len(a)] = a, 1
    return out, segments, offsets
