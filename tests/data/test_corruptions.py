"""Corrupted windows: nothing of the text is lost, rows fit, noise depends on (seed, epoch, window) alone, documents stay apart."""
from itertools import islice

import numpy as np
import pytest

from pyllm.data.batch import IGNORED
from pyllm.data.corruptions import CORRUPTIONS, MIDDLE, MODES, SENTINELS, Corrupted, Marks
from pyllm.data.loader import Loader, validation
from pyllm.data.shards import in_memory
from pyllm.errors import ConfigError
from pyllm.text import ByteLevelBPE, CharTokenizer, WordPiece

TEXT = ["The dogs barked at night. Nobody knew why! Was it the moon, or the wind?\n", "Stones do not speak.",
        "A short one. And another. " * 9]
SPECIALS = ("<|endoftext|>", "<mask>", *(names[0] for _, names in MODES), *(names[0] for names in MIDDLE), *reversed(SENTINELS))
BPE = ByteLevelBPE.train(TEXT, 400, special_tokens=SPECIALS)
EVERY = pytest.mark.parametrize("name", CORRUPTIONS)
T = 32


def corrupted(name, tokenizer=BPE):
    return Corrupted(name, tokenizer, [0] if CORRUPTIONS[name].loss == "seq2seq" else ())


def shards(tokenizer=BPE, times=6):
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return in_memory([tokenizer.encode(text, template=False) + end for text in TEXT * times], tokenizer.vocab_size, eos_id=tokenizer.eos_id)


def original(name, batch, row):
    """The text of a row, put together from what is read and what is told; of `infill` what is told."""
    real = slice(None) if batch.segments is None else batch.segments[row] > 0
    read = batch.tokens[row][real].tolist()
    if CORRUPTIONS[name].loss == "mlm":
        told = batch.targets[row][real]
        return np.where(told != IGNORED, told, read).tolist()
    if CORRUPTIONS[name].loss == "clm":
        ids = [*read, int(batch.targets[row, len(read) - 1])]
        prefix, suffix, middle = (BPE.id(names[0]) for names in MIDDLE)
        if prefix in ids:
            p, s, m = (ids.index(mark) for mark in (prefix, suffix, middle))
            stop = ids.index(BPE.eos_id, m) if BPE.eos_id in ids[m:] else len(ids)
            ids = [*ids[:p], *ids[p + 1 : s], *ids[m + 1 : stop], *ids[s + 1 : m], *ids[stop:]]
        return ids[:-1]
    told = batch.targets[row][batch.targets[row] != IGNORED].tolist()
    assert read[-1] == told[-1] == BPE.eos_id
    read, told = read[:-1], told[:-1]
    if name == "infill":
        return told
    if name == "ul2":
        mode, read = read[0], read[1:]
        assert BPE.token(mode) in "[R][S][X]"
    marks = [BPE.id(s) for s in SENTINELS]
    if not set(read) & set(marks):
        return read + told
    spans, current = {}, None
    for id in told:
        if id in marks:
            current = spans.setdefault(id, [])
        else:
            current.append(id)
    return [x for id in read for x in (spans[id] if id in marks else [id])]


@EVERY
def test_the_batches_of_an_epoch_hold_the_whole_text(name):
    """In order and without shuffling every window gives its text back, and together they are the stream."""
    data, form, found = shards(), corrupted(name), []
    for batch in validation(data, 4, T, form):
        for row in range(len(batch.tokens)):
            found += original(name, batch, row)
    assert found == data[:].tolist()[:-1]


@EVERY
def test_rows_fit_and_are_mostly_full(name):
    form = corrupted(name)
    lengths = [batch.tokens.shape[1] for batch in islice(Loader(shards(), 1, T, 0, corrupted=form), 100)]
    assert max(lengths) <= T and max(lengths) > 0.6 * T
    batch = next(Loader(shards(), 64, T, 0, corrupted=form))
    assert batch.targets.shape[1] <= T and batch.count > 64


@EVERY
def test_noise_depends_on_seed_epoch_and_window_alone(name):
    data, form = shards(), corrupted(name)

    def rows(batch, count, seed=0, loader=None):
        loader = loader or Loader(data, batch, T, seed, corrupted=form)
        found = []
        while len(found) < count:
            b = next(loader)
            found += [(b.tokens[i][b.segments[i] > 0].tolist(), b.targets[i][b.targets[i] != IGNORED].tolist()) for i in range(batch)]
        return found[:count]

    one, three = rows(1, 60), rows(3, 60)
    assert one == three and one != rows(1, 60, seed=1)
    first, second = (list(validation(data, 4, T, form)) for _ in range(2))
    assert all(np.array_equal(a.tokens, b.tokens) and np.array_equal(a.targets, b.targets) for a, b in zip(first, second))
    loader = Loader(data, 2, T, 0, corrupted=form)
    begun = rows(2, 22, loader=loader)
    again = Loader(data, 2, T, 0, corrupted=corrupted(name))
    again.load_state(loader.state())
    assert begun + rows(2, 38, loader=again) == one


def test_every_epoch_corrupts_anew():
    data, form = shards(times=1), corrupted("mlm")
    loader = Loader(data, 1, 1000, 0, shuffle=False, corrupted=form)
    first, second = next(loader), next(loader)
    assert loader.epoch == 2 and original("mlm", first, 0) == original("mlm", second, 0)
    assert not np.array_equal(first.targets, second.targets)


def test_a_state_of_another_corruption_is_refused():
    loader = Loader(shards(), 2, T, 0, corrupted=corrupted("mlm"))
    state = loader.state()
    with pytest.raises(ValueError, match="corruption is 'wwm' here and 'mlm' in the state"):
        Loader(shards(), 2, T, 0, corrupted=corrupted("wwm")).load_state(state)


def test_masked_rows_keep_documents_apart_and_carry_the_templates_tokens():
    tokenizer = WordPiece.train(TEXT, 120)
    batch = next(validation(shards(tokenizer), 8, T, corrupted("mlm", tokenizer)))
    assert (batch.tokens[:, 0] == tokenizer.cls_id).all() and (batch.tokens[:, -1] == tokenizer.sep_id).all()
    assert (batch.targets[:, [0, -1]] == IGNORED).all() and batch.segments.max() == 2
    for row in range(8):
        ids = original("mlm", batch, row)
        begins = [i for i in range(1, T - 1) if batch.segments[row, i] != batch.segments[row, i - 1]]
        starts = {tuple(tokenizer.encode(text, template=False)[:3]) for text in TEXT}
        assert all(tuple(ids[i : i + 3]) in starts for i in begins if i < T - 4)


def test_both_sides_of_an_encoder_decoder_carry_the_templates_tokens():
    """As BART's files have it: <s> text </s> is read and told, behind the start token."""
    tokenizer = WordPiece.train(TEXT, 120)
    form = Corrupted("infill", tokenizer, [tokenizer.sep_id])
    batch = next(validation(shards(tokenizer), 3, T, form))
    assert form.window(T) == T - 2 and (batch.tokens[:, 0] == tokenizer.cls_id).all()
    assert (batch.decoder_tokens[:, 0] == tokenizer.sep_id).all()
    assert (batch.targets[:, 0] == tokenizer.cls_id).all() and (batch.targets[:, -1] == tokenizer.sep_id).all()
    assert all(row[segments > 0][-1] == tokenizer.sep_id for row, segments in zip(batch.tokens, batch.segments))


def test_whole_words_are_found_in_every_kind_of_vocabulary():
    text = "Hello brown dogs, barking. Yes"
    for tokenizer in (BPE, WordPiece.train(TEXT + [text], 90), CharTokenizer.train(TEXT + [text], special_tokens=("<mask>",))):
        ids, spans = tokenizer.encode_offsets(text, template=False)
        words = Marks(tokenizer, CORRUPTIONS["wwm"]).words(np.array(ids))
        found = {}
        for word, (begin, end) in zip(words.tolist(), spans.tolist()):
            found.setdefault(word, []).append(text[begin:end])
        assert ["".join(parts).strip() for parts in found.values()] == ["Hello", "brown", "dogs", ",", "barking", ".", "Yes"]


def test_sentences_end_where_they_end():
    ids = np.array(BPE.encode(TEXT[0]))
    ends = Marks(BPE, CORRUPTIONS["infill"]).sentence_ends[ids]
    assert [BPE.decode([i]) for i in ids[ends]] == [".", "!", "?"]


def test_a_filled_in_row_rearranges_one_document():
    form = corrupted("fim")
    batch, moved = next(Loader(shards(), 200, T, 0, corrupted=form)), 0
    prefix, suffix, middle = (BPE.id(names[0]) for names in MIDDLE)
    for row in range(200):
        marks = [np.flatnonzero(batch.tokens[row] == mark).tolist() for mark in (prefix, suffix, middle)]
        moved += bool(marks[0])
        if marks[0] and marks[2]:
            assert len({int(batch.segments[row, at[0]]) for at in marks}) == 1
    assert 70 <= moved <= 130


@pytest.mark.parametrize("name, text", [("mlm", "special token <mask>"), ("span", "special token <extra_id_0>"),
                                        ("ul2", r"special tokens <extra_id_0>, \[R\], \[S\], \[X\]"),
                                        ("fim", r"<\|fim_prefix\|>, <\|fim_suffix\|>, <\|fim_middle\|>"), ("noise", "expected one of mlm")])
def test_what_a_tokenizer_lacks_is_named(name, text):
    with pytest.raises(ConfigError, match=text):
        Corrupted(name, ByteLevelBPE.train(TEXT, 300), [0])
    for options, wrong in ((dict(rate=1.5), "rate 1.5"), (dict(name="prefix", rate=0.5), "rate 0.5; expected none"),
                           (dict(name="span", starts=()), "no starts")):
        with pytest.raises(ConfigError, match=wrong):
            Corrupted(**{"name": "mlm", "tokenizer": BPE, "starts": [0], **options})
    with pytest.raises(ConfigError, match="no room"):
        corrupted("fim").window(4)
