"""Rows of T tokens: windows of a token stream, or short documents packed side by side.

Targets never cross a document's border. The end token belongs to the document it ends: the target of the last word is the end
token, and the end token itself has no target, as has the last token of a document without one.
"""
import numpy as np

from pyllm.data.batch import IGNORED, Batch


def packed_windows(shards, starts, length):
    """Windows of a TokenShards -> Batch (B, T): row b predicts tokens starts[b] + 1 ... starts[b] + T from the ones before them.

    A window that sticks out at either end of the shards is cut there and padded on the right. Segments number the documents of a
    row from 1; they are None when every row is full and of one document.
    """
    B, T = len(starts), length
    tokens, targets, segments = (np.full((B, T), fill, np.int32) for fill in (0, IGNORED, 0))
    plain = True
    for row, start in enumerate(starts):
        ids, borders = window(shards, start, T)
        n = len(ids) - 1
        tokens[row, :n], targets[row, :n], segments[row, :n] = ids[:-1], ids[1:], 1
        targets[row, borders - 1] = IGNORED
        for border in borders.tolist():
            segments[row, border:n] += 1
        plain = plain and n == T and segments[row, -1] == 1
    return Batch(tokens, targets, None if plain else segments)


def window(shards, start, length):
    """-> (n + 1,) ids: n <= length tokens from `start` on and the one behind them; where in them documents begin, each from 1 to n.

    A window that sticks out at either end of the shards is cut there.
    """
    begin, end = max(int(start), 0), min(int(start) + length, len(shards) - 1)
    if begin >= end:
        raise ValueError(f"window: start is {start}: no token of {len(shards)} to predict")
    return shards[begin:end + 1], shards.borders(begin, end + 1)


def next_token(ids):
    """(n,) ids of one document -> (tokens, targets), each (n - 1,): every id but the last predicts its successor."""
    ids = np.asarray(ids)
    return ids[:-1], ids[1:]


def pack(documents, length, rows=None):
    """Short documents, (tokens, targets) pairs of equal 1-D arrays -> Batch (R, T) with as few rows as best fit finds.

    rows: R lists of indices of documents, where it is known which share a row. Nothing is dropped or cut. Raises
    ValueError naming the document that is empty or longer than `length`.
    """
    for i, (tokens, targets) in enumerate(documents):
        if not 1 <= len(tokens) <= length or len(targets) != len(tokens):
            raise ValueError(f"pack: document {i} has {len(tokens)} tokens and {len(targets)} targets; expected as many of each, "
                             f"from 1 to {length}. Truncate or split longer documents first")
    rows = best_fit([len(tokens) for tokens, _ in documents], length) if rows is None else rows
    out = [np.full((len(rows), length), fill, np.int32) for fill in (0, IGNORED, 0)]
    for r, row in enumerate(rows):
        at = 0
        for k, i in enumerate(row, 1):
            n = len(documents[i][0])
            for array, values in zip(out, (*documents[i], k)):
                array[r, at:at + n] = values
            at += n
    return Batch(*out)


def best_fit(lengths, capacity):
    """Lengths (each from 1 to capacity) -> rows, lists of indices whose lengths sum to at most `capacity`.

    Best fit decreasing: longest first, each into the fullest row that still takes it. At most 11/9 of the least number of rows,
    plus 1 (Johnson 1973). Equal lengths keep their order, so the result depends on nothing else.
    """
    rows, by_room = [], {}  # by_room[n]: the rows with room for n more
    rooms = 0  # bit n is set where by_room[n] is not empty: finds the smallest room in a few operations
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        n = lengths[i]
        if not 1 <= n <= capacity:
            raise ValueError(f"best_fit: lengths[{i}] is {n}, expected 1 to {capacity}")
        if fits := rooms >> n:
            room = n + (fits & -fits).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(i)
        if room > n:
            by_room.setdefault(room - n, []).append(row)
            rooms |= 1 << (room - n)
    return rows
