"""What is wrong with a data set, found before the first step: every example is read, rendered and compared, and what is found is counted.

CHECKS: name -> what is counted, and the share of a split's examples that may have it; beyond that the data are refused.
"""
from dataclasses import dataclass, field

from pyllm.data.dedup import asked_and_said, exact_duplicates, near_duplicates
from pyllm.data.examples import label_names
from pyllm.data.packing import best_fit
from pyllm.data.render import rendered, rows_of
from pyllm.errors import ConfigError, FormatError, suggest
from pyllm.progress import Progress

CHECKS = {
    "bad": ("lines that cannot be read", 0.0),
    "labels": ("examples with a label that the training data do not have", 0.0),
    "empty": ("examples with an empty answer, or no text", 0.0),
    "same": ("pairs whose chosen and rejected answers are the same", 0.0),
    "drift": ("conversations that the template writes otherwise when they go on", 0.0),
    "bos": ("rows that begin with the BOS twice", 0.0),
    "eos": ("rows whose answer has no end token: a model that learns them does not stop", 0.0),
    "target": ("rows without any target left", 0.0),
    "cut": ("rows that are longer than the length and cut", 0.05),
    "unknown": ("rows with unknown tokens", 0.05),
    "inside": ("rows with an end token in the middle", 1.0),
    "joined": ("rows whose prompt and answer touch without a blank (a prompt format can end with one)", 1.0),
    "border": ("rows with a token over the border of prompt and answer, which is split there", 1.0),
    "duplicates": ("examples that stand in their split already", 0.01),
    "near": ("examples that nearly stand in their split already", 1.0),
    "contradictions": ("texts that stand in their split already with another label", 0.01),
    "leaks": ("examples that the training data ask too", 0.0),
    "near-leaks": ("examples that the training data ask nearly so", 1.0),
}


@dataclass
class Report:
    """Of one split. kind; examples: how many; found: {name in CHECKS: places, str}; lengths: tokens of each row before any cut, of both
    sides where there are two; cut: tokens that are cut; learned: targets; row: a Row, or pair of them, for showing; labels: {name: how
    many}."""

    kind: str
    examples: int = 0
    found: dict = field(default_factory=lambda: {name: [] for name in CHECKS})
    lengths: list = field(default_factory=list)
    cut: int = 0
    learned: int = 0
    row: object = None
    labels: dict = field(default_factory=dict)

    def share(self, name):
        """The share of the examples that a check found."""
        return len(self.found[name]) / max(self.examples, 1)

    def packed(self, length):
        """The share of useful tokens when rows of `length` are packed."""
        sizes = [min(n, length + 1) - 1 for n in self.lengths if n > 1]
        return sum(sizes) / (length * len(best_fit(sizes, length))) if sizes else 0.0


def check(splits, tokenizer=None, *, near=0.8, show=1, labels=None, architecture="decoder", prompt_format="{prompt}", **options):
    """splits: {"train": Examples, ...} that skip bad lines -> {"train": Report, ...}.

    tokenizer: without one, what concerns tokens is not looked at. near: from which share of common shingles on two examples are nearly the
    same; None: not looked at. show: which example the report keeps the rows of. labels, architecture, prompt_format, options: of `render`.
    """
    options = {"architecture": architecture, "prompt_format": prompt_format, **options}
    reports, known, known_places = {}, [], []
    for part, examples in splits.items():
        report = reports[part] = Report(examples.kind)
        classes = examples.kind == "classification"
        if classes and labels is None:
            labels = label_names(examples)
        asked, whole, places = [], [], []
        with Progress(None, f"check {part}", "examples") as bar:
            for example in examples:
                bar.update()
                report.examples += 1
                question, everything = asked_and_said(example, examples.kind)
                asked.append(question)
                whole.append(f"{everything}\n{example['label']}" if classes else everything)
                places.append(brief(example["where"]))
                if _look(report, example, labels) and tokenizer is not None:
                    _render(report, example, tokenizer, show, labels=labels, **options)
        report.found["bad"] = [brief(examples.first_skipped or "")] * examples.skipped
        report.examples += examples.skipped
        same = exact_duplicates(whole)
        report.found["duplicates"] = [f"{places[i]} as {places[j]}" for i, j in same]
        if classes:
            told = {i for i, _ in same}
            report.found["contradictions"] = [f"{places[i]} and {places[j]}" for i, j in exact_duplicates(asked) if i not in told]
        if near and not classes:
            report.found["near"] = [f"{places[i]} as {places[j]} ({share:.0%})"
                                    for i, j, share in near_duplicates(whole, near) if share < 1]
        if part == "train":
            known, known_places = asked, places
        elif known:
            both, base = known + asked, len(known)
            report.found["leaks"] = [f"{places[i - base]} as {known_places[j]}" for i, j in exact_duplicates(both, base)]
            if near:
                report.found["near-leaks"] = [f"{places[i - base]} as {known_places[j]} ({share:.0%})"
                                              for i, j, share in near_duplicates(both, near, base) if share < 1]
    return reports


def refusals(reports, allow=None):
    """allow: {name of CHECKS: share} over the defaults -> [(split, name)] of what stands in the way of training."""
    allow = {**{name: share for name, (_, share) in CHECKS.items()}, **(allow or {})}
    if unknown := [name for name in allow if name not in CHECKS]:
        raise ConfigError(f"allow: {unknown[0]!r}; expected one of {', '.join(CHECKS)}.{suggest(unknown[0], CHECKS)}")
    return [(part, name) for part, report in reports.items() for name in CHECKS if report.share(name) > allow[name]]


def brief(where):
    """A place without its folders."""
    return where.rpartition("/")[2]


# ---- one example

def _look(report, example, labels):
    """What needs no tokenizer -> whether there is anything to render."""
    place = brief(example["where"])
    if "label" in example and report.kind == "classification":
        report.labels[example["label"]] = report.labels.get(example["label"], 0) + 1
        if example["label"] not in labels:
            report.found["labels"].append(f"{place}: {example['label']!r}")
            return False
    answers = {"text": [example.get("text")], "classification": [example.get("text")], "messages": _said(example.get("messages", ())),
               "preference": [example.get("chosen"), example.get("rejected")]}.get(report.kind, [example.get("completion", "-")])
    if not answers or not all(_blank(a) is False for a in answers):
        report.found["empty"].append(place)
    if report.kind == "preference" and example["chosen"] == example["rejected"]:
        report.found["same"].append(place)
    return True


def _said(messages):
    return [m["content"] or "(calls a tool)" * bool(m.get("tool_calls")) for m in messages if m["role"] == "assistant"]


def _blank(value):
    return not (value if isinstance(value, str) else "".join(_said(value))).strip()


def _render(report, example, tokenizer, show, **options):
    place = brief(example["where"])
    try:
        items = rendered(example, report.kind, tokenizer, **options)
    except FormatError as error:
        report.found["drift"].append(brief(str(error)))
        return
    rows = rows_of(items)
    if items and (report.examples == show or report.row is None):
        report.row = max(items, key=lambda item: isinstance(item, tuple) or item.label != (0, 0))  # a window that has the answer
    eos, bos = tokenizer.eos_id, tokenizer.bos_id
    ends = {t.id for t in tokenizer.added if t.special} | {eos}
    sides = [side for row in rows for side in (row.tokens, row.decoder) if side is not None]
    found = {
        "bos": bos is not None and any(side[:2].tolist() == [bos, bos] for side in sides),
        "target": not items or report.kind != "prompt" and not all(row.targets for row in rows),
        "cut": any(row.cut for row in rows), "border": any(row.drift for row in rows),
        "joined": options["architecture"] == "decoder" and _joined(example, options["prompt_format"]),
        "unknown": tokenizer.unk_id is not None and any((side == tokenizer.unk_id).any() for side in sides),
        "eos": any(row.label is None and row.targets and not row.cut and _last(row) not in ends for row in rows),
        "inside": eos is not None and report.kind in ("text", "completion") and any((_answer(row)[:-1] == eos).any() for row in rows),
    }
    for name, wrong in found.items():
        if wrong:
            report.found[name].append(place)
    report.lengths += [len(row) + row.cut + (0 if row.decoder is None else len(row.decoder)) for row in rows]
    report.cut += sum(row.cut for row in rows)
    report.learned += sum(row.targets for row in rows)


def _joined(example, prompt_format):
    answers = [example[key] for key in ("completion", "chosen") if isinstance(example.get(key), str)]
    return any((prompt_format.replace("{prompt}", example["prompt"])[-1:] + answer[:1]).isalnum() for answer in answers if answer)


def _answer(row):
    return row.decoder if row.decoder is not None else row.tokens[row.learned]


def _last(row):
    return int(_answer(row)[-1])
