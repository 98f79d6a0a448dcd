"""An example and a tokenizer -> a Row: its tokens, and which of them are learned.

Learned are completions and assistant turns, up to and with the token that ends them, and nothing else. A turn's place is found by prefix
rendering: the conversation up to it, as a model is asked for it, has to be the beginning of the whole.

A prompt and its completion are tokenised as one text where the prompt's own tokens are the beginning of that, which is what a model is
given when it is asked; otherwise (a token would reach over the border) separately, and the row counts as drift.
"""
from dataclasses import dataclass, field, replace

import numpy as np

from pyllm.errors import FormatError

ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
TRUNCATIONS = ("keep_start", "keep_end")
STRIDE = 128  # tokens from one window of a long context to the next


@dataclass(frozen=True, eq=False)
class Row:
    """tokens (n,) int32; learned (n,) bool: which of them are targets, predicted from the ones before.

    decoder (m,) int32: what an encoder-decoder answers to `tokens`, all of it learned. types (n,) int32: which text of a pair a token
    belongs to. label: a class, or the first and last token of a span. extra: {name: number}, for Batch.extra. cut: tokens that max_length
    took away. drift: a token would have reached over the border of prompt and completion. where: file and line.
    """

    tokens: np.ndarray
    learned: np.ndarray
    decoder: np.ndarray | None = None
    types: np.ndarray | None = None
    label: int | tuple | None = None
    extra: dict = field(default_factory=dict)
    cut: int = 0
    drift: bool = False
    where: str = ""

    def __len__(self):
        return len(self.tokens)

    @property
    def targets(self):
        """How many targets a loss counts; the first token has none before it."""
        if self.label is not None:
            return 1
        return int(np.count_nonzero(self.learned[1:])) if self.decoder is None else len(self.decoder)


def render(example, kind, tokenizer, *, architecture="decoder", max_length=None, truncation="keep_start", prompt_format="{prompt}",
           labels=None):
    """An example of a kind (see pyllm.data.formats) -> Row; of the kind preference -> (chosen Row, rejected Row).

    architecture: what the row is for: "decoder", "encoder" or "encoder-decoder". max_length: tokens at most, of each side; truncation:
    "keep_start" cuts the end, "keep_end" the beginning (but for a BOS) and so keeps the answer's end. prompt_format: what stands around a
    prompt that is text, such as "Translate to German: {prompt}". labels: the names of the classes, in order of their ids.
    Raises FormatError naming the place for template drift, an unknown label; nothing is raised where no target is left: see `targets`.
    """
    _check(architecture, max_length, truncation, prompt_format)
    tokenizer = tokenizer.untruncated()  # max_length says it here, and what is cut is counted
    if kind == "classification":
        return _classified(example, tokenizer, max_length, truncation, labels)
    if kind == "question" and architecture == "encoder":
        return _span(example, tokenizer, max_length)
    if kind == "question":
        example = written(example)
    if kind == "text" or kind == "prompt" and architecture != "decoder":
        text = example[kind] if isinstance(example[kind], str) else _words(example[kind])
        ids = _ended(tokenizer, _encode(tokenizer, text)) if architecture != "encoder" else _encode(tokenizer, text)
        return _row(tokenizer, ids, np.ones(len(ids), bool), max_length, truncation, example)
    if kind == "preference":
        pair = [_answered(example, key, tokenizer, prompt_format) for key in ("chosen", "rejected")]
        longest = max(len(ids) for ids, _, _ in pair)
        over = max(longest - (max_length or longest), 0)
        rows = tuple(_row(tokenizer, *part[:2], max_length, truncation, example, part[2], over) for part in pair)
        for row in rows:
            row.extra["margin"] = np.float32(example.get("margin", 0))
        return rows
    if architecture == "encoder-decoder":
        return _translated(example, kind, tokenizer, max_length, truncation, prompt_format)
    if kind == "messages":
        parts = _conversation(tokenizer, example["messages"], 0, example["where"])
    elif kind == "prompt":
        parts = _asked(example["prompt"], tokenizer, prompt_format)
    else:
        parts = _answered(example, "completion", tokenizer, prompt_format)
    row = _row(tokenizer, *parts[:2], max_length, truncation, example, parts[2])
    if kind == "unpaired":
        row.extra["label"] = np.float32(example["label"])
    return row


def written(example):
    """question, context, references -> prompt, completion: the question for a model that writes, as in T5's tasks."""
    answer = example["references"][0] if example["references"] else "unanswerable"
    return {"prompt": f"question: {example['question']} context: {example['context']}\nanswer:", "completion": f" {answer}",
            **{key: example[key] for key in ("id", "where", "references") if key in example}}


def rendered(example, kind, tokenizer, *, stride=STRIDE, **options):
    """An example, options of `render` -> list of what it gives: of a question for an encoder a Row for each window of its context.

    A window without all of the answer says that there is none, as in SQuAD's baselines. [] where no window has all of it.
    """
    if kind != "question" or options.get("architecture") != "encoder":
        return [render(example, kind, tokenizer, **options)]
    found = [_window_row(example, w) for w in windows(example, tokenizer, options.get("max_length"), stride)]
    return found if not example["answers"] or any(row.label != (0, 0) for row in found) else []


@dataclass
class Counts:
    """What `prepare` did: examples seen, windows of contexts that needed several, dropped for lack of a target, cut (rows), cut_tokens,
    drift (rows), tokens kept and learned, labels (classes and spans)."""

    examples: int = 0
    windows: int = 0
    dropped: int = 0
    cut: int = 0
    cut_tokens: int = 0
    drift: int = 0
    tokens: int = 0
    learned: int = 0
    labels: int = 0

    def __str__(self):
        learned = f"{self.labels:,} labels" if self.labels else f"{self.learned:,} of them learned"
        parts = [f"{self.examples:,} examples", f"{self.tokens:,} tokens", learned]
        parts += [f"{self.windows:,} windows of long contexts"] * bool(self.windows)
        parts += [f"{self.dropped:,} dropped: no target left"] * bool(self.dropped)
        parts += [f"{self.cut:,} rows cut by {self.cut_tokens:,} tokens"] * bool(self.cut)
        parts += [f"{self.drift:,} rows with a token over the border of prompt and completion, which is split there"] * bool(self.drift)
        return ", ".join(parts)


def prepare(examples, tokenizer, **options):
    """Examples (their kind is `examples.kind`), options of `rendered` -> (list of Rows, or of pairs of them; Counts).

    A row, or a pair of which one row, has no target left is dropped and counted. Raises FormatError when nothing is left.
    """
    found, counts = [], Counts()
    for example in examples:
        items = rendered(example, examples.kind, tokenizer, **options)
        counts.examples += 1
        counts.windows += len(items) if len(items) > 1 else 0
        rows = rows_of(items)
        counts.cut += sum(row.cut > 0 for row in rows)
        counts.cut_tokens += sum(row.cut for row in rows)
        if not items or examples.kind != "prompt" and not all(row.targets for row in rows):
            counts.dropped += 1
            continue
        counts.drift += sum(row.drift for row in rows)
        counts.tokens += sum(len(row) + (0 if row.decoder is None else len(row.decoder)) for row in rows)
        counts.learned += sum(row.targets for row in rows)
        counts.labels += sum(row.label is not None for row in rows)
        found += items
    if not found:
        raise FormatError(f"prepare: no row is left: {counts}. Hint: a larger max_length, or truncation=\"keep_end\"")
    return found, counts


def rows_of(items):
    """Rows and pairs of rows -> a flat list of rows: chosen before rejected."""
    return [row for item in items for row in (item if isinstance(item, tuple) else (item,))]


# ---- text

def _check(architecture, max_length, truncation, prompt_format):
    wrong = [f"{name} is {value!r}, expected one of {', '.join(known)}" for name, value, known in (
        ("architecture", architecture, ARCHITECTURES), ("truncation", truncation, TRUNCATIONS)) if value not in known]
    if max_length is not None and (type(max_length) is not int or max_length < 2):
        wrong.append(f"max_length is {max_length!r}, expected None or a whole number of at least 2")
    if "{prompt}" not in prompt_format:
        wrong.append(f"prompt_format is {prompt_format!r}, expected a text with {{prompt}} in it")
    if wrong:
        raise ValueError(f"render: {'; '.join(wrong)}")


def _encode(tokenizer, text, template=True):
    return tokenizer.encode(text, template=template)


def _tail(tokenizer, ids):
    """How many of the last ids are the template's: a [SEP], an </s>."""
    around = tokenizer.encode("")
    tail = 0
    while tail < len(around) and tail < len(ids) and around[-1 - tail] == ids[-1 - tail] and around[-1 - tail] != tokenizer.bos_id:
        tail += 1
    return tail


def _ended(tokenizer, ids):
    """ids with one EOS at their end."""
    eos = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.sep_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def _asked(prompt, tokenizer, prompt_format):
    """A prompt as a model is asked it -> ids, learned (nothing), drift."""
    if isinstance(prompt, str):
        ids = _encode(tokenizer, prompt_format.replace("{prompt}", prompt))
        ids = ids[:len(ids) - _tail(tokenizer, ids)]
    else:
        ids = tokenizer.chat(prompt, add_generation_prompt=True)
    return ids, np.zeros(len(ids), bool), False


def _answered(example, key, tokenizer, prompt_format):
    """prompt + the completion under `key` -> ids, learned (the completion and its EOS), drift."""
    prompt, completion = example["prompt"], example[key]
    if not isinstance(prompt, str):
        return _conversation(tokenizer, [*prompt, *completion], len(prompt), example["where"])
    asked, _, _ = _asked(prompt, tokenizer, prompt_format)
    ids = _encode(tokenizer, prompt_format.replace("{prompt}", prompt) + completion)
    ids = ids[:len(ids) - _tail(tokenizer, ids)]
    drift = ids[:len(asked)] != asked
    if drift:
        ids = asked + _encode(tokenizer, completion, template=False)
    if completion:
        ids = _ended(tokenizer, ids)
    return ids, np.arange(len(ids)) >= len(asked), drift


# ---- conversations

def _conversation(tokenizer, messages, first, where):
    """messages, of which those from `first` on may be learned -> ids, learned (their assistant turns, each with its end), drift."""
    turns = [k for k, m in enumerate(messages) if m["role"] == "assistant" and k >= first]
    ids = tokenizer.chat(messages, add_generation_prompt=False)
    learned, splits = np.zeros(len(ids), bool), []
    special = {t.id for t in tokenizer.added if t.special}
    for k in turns:
        if k == 0:
            raise FormatError(f"{where}: the conversation begins with the assistant; expected a message it answers")
        said = bool(messages[k]["content"].strip() or messages[k].get("tool_calls"))
        before = tokenizer.chat(messages[:k], add_generation_prompt=True)
        start, beyond = _reach(tokenizer, before, ids, f"{where}: template drift: message {k}: the conversation as asked for it")
        after = ids if k == len(messages) - 1 else tokenizer.chat(messages[:k + 1], add_generation_prompt=False)
        stop, late = _reach(tokenizer, after, ids, f"{where}: template drift: message {k}: the conversation up to its end")
        ends = [i for i in range(start, stop) if ids[i] in special]
        learned[start:ends[-1] + 1 if ends else stop - (late is not None)] = said
        if beyond is not None:
            splits.append((start, before, beyond))
        if k == len(messages) - 1 and not ends:  # a template that ends no turn: the EOS does
            ids = _ended(tokenizer, ids)
            learned = np.append(learned, [said] * (len(ids) - len(learned)))
    _check_declared(tokenizer, messages, ids, learned, special, where)
    for start, before, beyond in reversed(splits):
        shared = _shared(before, ids)
        ids = [*ids[:shared], *before[shared:], *beyond, *ids[start:]]
        learned = np.concatenate([learned[:shared], [False] * (len(before) - shared), [True] * len(beyond), learned[start:]])
    return ids, learned.astype(bool), bool(splits)


def _reach(tokenizer, part, whole, what):
    """part, whole: ids; the text of one begins with that of the other -> how many ids of the whole reach to the part's end, and None, or
    the ids of what they have beyond it. FormatError where it does not begin so."""
    if whole[:len(part)] == part:
        return len(part), None
    head, text = tokenizer.decode_bytes(part), tokenizer.decode_bytes(whole)
    if not text.startswith(head):
        at = _shared(head, text)
        one, other = (t[max(at - 20, 0):at + 30].decode("utf-8", "replace") for t in (head, text))
        raise FormatError(f"{what} has {one!r}, the whole one {other!r} there")
    n = _shared(part, whole)
    while len(tokenizer.decode_bytes(whole[:n])) < len(head):
        n += 1
    return n, tokenizer.encode(tokenizer.decode_bytes(whole[:n])[len(head):].decode("utf-8", "replace"), special=False)


def _shared(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _check_declared(tokenizer, messages, ids, learned, special, where):
    """What the template itself declares as generated is what was found, but for the blanks and special tokens at a turn's end."""
    declared = tokenizer.chat_declared(messages) if learned.any() else None
    if declared is None:
        return
    begin = int(np.argmax(learned))
    declared = np.append(np.array(declared, bool), np.zeros(len(learned) - len(declared), bool))
    wrong = [i for i in np.flatnonzero(declared != learned).tolist()
             if i >= begin and ids[i] not in special and tokenizer.decode([ids[i]]).strip()]
    if wrong:
        here = tokenizer.decode(ids[max(wrong[0] - 5, 0):wrong[0] + 5])
        does, it_is = ("do not hold", "is") if learned[wrong[0]] else ("hold", "is not")
        raise FormatError(f"{where}: template drift: its {{% generation %}} blocks {does} token {wrong[0]}, in {here!r}; by the turns it "
                          f"{it_is} the assistant's")


def _words(messages):
    return "\n".join(m["content"] for m in messages)


# ---- rows

def _row(tokenizer, ids, learned, max_length, truncation, example, drift=False, over=None):
    """over: of two rows that share a prompt, by how many tokens the longer one exceeds max_length: both keep the same part of it."""
    n = len(ids)
    ids, learned = np.array(ids, np.int32), np.array(learned, bool)
    own = max(n - max_length, 0) if max_length else 0
    if truncation == "keep_end" and max(over or 0, own) > 0:
        begin = int(n > 0 and ids[0] == tokenizer.bos_id and np.count_nonzero(ids == ids[0]) == 1)  # more of them begin turns, not the row
        answer = int(np.argmax(learned)) if learned.any() else n
        stop = begin + own if over is None else max(begin, min(begin + over, answer))
        ids, learned = (np.concatenate([a[:begin], a[stop:]]) for a in (ids, learned))
    ids, learned = ids[:max_length], learned[:max_length]
    return Row(ids, learned, cut=n - len(ids), drift=drift, where=example["where"])


def _translated(example, kind, tokenizer, max_length, truncation, prompt_format):
    """The two sides of an encoder-decoder: each as the tokenizer's template puts it, with an EOS."""
    if kind == "messages":
        if example["messages"][-1]["role"] != "assistant" or len(example["messages"]) < 2:
            raise FormatError(f"{example['where']}: the last message is not the assistant's; expected a turn to learn")
        prompt, completion = _words(example["messages"][:-1]), example["messages"][-1]["content"]
    else:
        prompt, completion = (s if isinstance(s, str) else _words(s) for s in (example["prompt"], example["completion"]))
    sides = [_ended(tokenizer, _encode(tokenizer, s)) for s in (prompt_format.replace("{prompt}", prompt), completion)]
    (tokens, cut), (decoder, cut_too) = (_shorter(tokenizer, ids, max_length, truncation) for ids in sides)
    if not completion.strip():
        decoder = decoder[:0]
    return Row(tokens, np.zeros(len(tokens), bool), decoder, cut=cut + cut_too, where=example["where"])


def _shorter(tokenizer, ids, max_length, truncation):
    """ids of one text, cut inside what the template puts around it -> (n,) int32, how many were cut."""
    ids, over = np.array(ids, np.int32), len(ids) - (max_length or len(ids))
    if over <= 0:
        return ids, 0
    tail = max(_tail(tokenizer, ids.tolist()), int(ids[-1] == tokenizer.eos_id))
    head = len(tokenizer.encode("")) - _tail(tokenizer, ids.tolist())
    at = len(ids) - tail - over if truncation == "keep_start" else head
    return np.concatenate([ids[:at], ids[at + over:]]), over


def _classified(example, tokenizer, max_length, truncation, labels):
    if labels is None or example["label"] not in labels:
        raise FormatError(f"{example['where']}: label {example['label']!r} is not among {labels!r:.200}" if labels is not None else
                          "render: labels is None, expected the names of the classes. Hint: label_names(examples)")
    ids, cut = _shorter(tokenizer, _encode(tokenizer, example["text"]), max_length, truncation)
    return Row(ids, np.zeros(len(ids), bool), label=list(labels).index(example["label"]), cut=cut, where=example["where"])


def _span(example, tokenizer, max_length):
    """-> the first window's Row, with what is beyond it as `cut`; see `rendered` for all of them."""
    found = windows(example, tokenizer, max_length)
    return replace(_window_row(example, found[0]), cut=sum(len(w.places) for w in windows(example, tokenizer, max_length, None)[1:]))


@dataclass(frozen=True, eq=False)
class Window:
    """A question and a part of its context. tokens, types (n,) int32; first: where the context's tokens begin; places (m, 2): the
    characters of each of those in the whole context."""

    tokens: np.ndarray
    types: np.ndarray
    first: int
    places: np.ndarray


def windows(example, tokenizer, length=None, stride=STRIDE):
    """question, context -> [Window, ...]: all of the context in windows of `length` tokens, question included (None: one window).

    Each begins `stride` tokens of the context behind the one before (Devlin et al. 2019: doc_stride), or where that ended if it is shorter;
    None: side by side. FormatError where the question leaves no room.
    """
    ids, types, places = tokenizer.untruncated().encode_pair(example["question"], example["context"])
    ids, types = np.array(ids, np.int32), np.array(types, np.int32)
    inside = [k for k, (kind, (a, b)) in enumerate(zip(types.tolist(), places.tolist())) if kind == 1 and a < b]
    begin, end = (inside[0], inside[-1] + 1) if inside else (len(ids), len(ids))
    room = (length or len(ids)) - (len(ids) - (end - begin))
    if room < 1 < len(ids):
        raise FormatError(f"{example.get('where', 'windows')}: the question {example['question']!r:.60} leaves no room for a context in "
                          f"{length} tokens")
    found = []
    for at in range(begin, max(end, begin + 1), min(stride or room, room)):
        part = slice(at, min(at + room, end))
        found.append(Window(*(np.concatenate([a[:begin], a[part], a[end:]]) for a in (ids, types)), begin, places[part]))
        if part.stop >= end:
            break
    return found


def _window_row(example, window):
    """-> Row; label: the first and the last token of the first answer, (0, 0) where there is none, or not all of it in this window."""
    label, places = (0, 0), window.places
    if example["answers"] and len(places):
        text, start = example["answers"][0]
        found = np.flatnonzero((places[:, 0] < start + len(text)) & (places[:, 1] > start))
        if found.size and places[found[0], 0] <= start and places[found[-1], 1] >= start + len(text):
            label = (window.first + int(found[0]), window.first + int(found[-1]))
    return Row(window.tokens, np.zeros(len(window.tokens), bool), types=window.types, label=label, where=example["where"])
