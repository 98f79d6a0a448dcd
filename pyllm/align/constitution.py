"""A constitution: principles with requests for critique, revision and comparison, some with a checker. Read from the published layouts.

    CritiqueRevisionInstructions.json    {name: {"prompt": [critique request], "edit_request": revision request}}   Bai et al. 2022
    RLMadisonInstructions.json           [comparison request]
    CritiqueRevisionFewShotPrompts.json  [conversation with critique and revision]
    RLMadisonFewShotPrompts.json         [{"prompt", "corrects", "incorrects"}]
    {"constitutions": [{"critic", "revision"}], "system_chat": [[message]]}                                        Hugging Face's
    {"principles": [{"name", "critique", "revision", "comparison", "checker", "weight"}], "system_chat": [..]}     ours
"""
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pyllm.errors import ConfigError, FormatError, suggest
from pyllm.io.files import read_json

@dataclass(frozen=True)
class Checker:
    """A rule that a response keeps or breaks, so that nobody has to judge. forbid, require: regular expressions (case does not matter).

    min_words, max_words: 0 = none.
    """

    forbid: str = ""
    require: str = ""
    min_words: int = 0
    max_words: int = 0

    def __post_init__(self):
        try:
            re.compile(self.forbid), re.compile(self.require)
        except re.error as error:
            raise ConfigError(f"checker: {error.pattern!r} is no regular expression: {error}") from None
        if not (self.forbid or self.require or self.min_words or self.max_words):
            raise ConfigError("checker: it checks nothing; expected forbid, require, min_words or max_words")

    def broken(self, text):
        """-> whether the text breaks the rule."""
        words = len(text.split())
        return bool(self.forbid and re.search(self.forbid, text, re.I) or self.require and not re.search(self.require, text, re.I)
                    or words < self.min_words or self.max_words and words > self.max_words)


@dataclass(frozen=True)
class Principle:
    """critique, revision, comparison: the requests, without the marks around them that the published files have; "" for none.

    weight: how often it is drawn, beside the others.
    """

    name: str
    critique: str = ""
    revision: str = ""
    comparison: str = ""
    checker: Checker | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Constitution:
    """principles; revision_shots: conversations [(role, text)] of a critique and a revision; comparison_shots: (prompt, better, worse)."""

    principles: tuple
    revision_shots: tuple = ()
    comparison_shots: tuple = ()

    @property
    def revising(self):
        """-> the principles that ask for a critique and a revision."""
        return [p for p in self.principles if p.critique and p.revision]

    @property
    def comparing(self):
        """-> the principles that compare two responses."""
        return [p for p in self.principles if p.comparison or p.checker]

    @staticmethod
    def draw(principles, count, seed):
        """-> `count` of the principles, by their weights."""
        weights = np.array([p.weight for p in principles])
        return [principles[i] for i in np.random.default_rng(seed).choice(len(principles), count, p=weights / weights.sum())]

    def violations(self, text):
        """-> names of the principles whose checker the text breaks."""
        return [p.name for p in self.principles if p.checker and p.checker.broken(text)]


def read_constitution(path):
    """path: a .json file of one of the layouts, or a folder of them -> Constitution. FormatError: another layout, no principle."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such constitution; expected a .json file or a folder of them")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    principles, revising, comparing = [], [], []
    for file in files:
        values = read_json(file)
        try:
            some, shots, pairs = _parts(values, file)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise FormatError(f"{file}: not a constitution: {type(error).__name__}: {error}") from None
        principles, revising, comparing = principles + some, revising + shots, comparing + pairs
    if not principles:
        raise FormatError(f"{path}: a constitution without principles; expected at least one")
    names = [p.name for p in principles]
    if twice := {n for n in names if names.count(n) > 1}:
        raise FormatError(f"{path}: the principle {min(twice)!r} stands twice")
    return Constitution(tuple(principles), tuple(revising), tuple(comparing))


def _parts(values, file):
    """-> principles, conversations of revisions, comparisons that a file holds."""
    shots = [[(m["role"], m["content"]) for m in shot] for shot in values.get("system_chat", [])] if isinstance(values, dict) else []
    if isinstance(values, dict) and "principles" in values:
        return [_own(p, f"{file}: principle {i}") for i, p in enumerate(values["principles"])], shots, []
    if isinstance(values, dict) and "constitutions" in values:
        return [Principle(f"{file.stem}{i}", p["critic"].strip(), p["revision"].strip())
                for i, p in enumerate(values["constitutions"])], shots, []
    if isinstance(values, dict):
        return [Principle(name, _request(p["prompt"][0]), _request(p["edit_request"])) for name, p in values.items()], [], []
    if values and all(isinstance(v, str) for v in values):
        if all("CritiqueRequest:" in v for v in values):
            return [], [conversation(v) for v in values], []
        return [Principle(f"{file.stem}{i}", comparison=v.strip().removesuffix("Options:").strip()) for i, v in enumerate(values)], [], []
    if values and all("corrects" in v for v in values):
        return [], [], [(_asked(v["prompt"]), v["corrects"][0], v["incorrects"][0]) for v in values]
    if values and all(set(v) == {"prompt"} for v in values):
        return [], [], []  # comparisons with a chain of thought written out: the chain is drawn here instead
    raise FormatError(f"{file}: not a constitution; expected principles, critique requests, comparison requests or few-shot examples")


def _own(values, where):
    known = tuple(f.name for f in fields(Principle))
    for key in values:
        if key not in known:
            raise FormatError(f"{where}: {key!r} is not a key of a principle.{suggest(key, known)} Keys: {', '.join(known)}")
    checker = values.get("checker")
    try:
        found = Principle(**{**values, "checker": Checker(**checker) if checker else None})
    except (TypeError, ConfigError) as error:
        raise FormatError(f"{where}: {error}") from None
    if bool(found.critique) != bool(found.revision) or not (found.critique or found.comparison or found.checker):
        raise FormatError(f"{where}: expected critique and revision together, or a comparison, or a checker")
    if not (isinstance(found.weight, (int, float)) and found.weight > 0):
        raise FormatError(f"{where}: weight {found.weight!r}; expected a number above 0")
    return found


def _request(text):
    """'\\n\\nCritiqueRequest: ...\\n\\nCritique:' -> what stands between the marks."""
    return re.sub(r"^\s*(Critique|Revision)Request:\s*|\s*(Critique|Revision):\s*$", "", text).strip()


def _asked(text):
    return re.sub(r"^\s*Human:\s*|\s*Assistant:\s*$", "", text).strip()


ROLES = {"Human": "user", "Assistant": "assistant", "CritiqueRequest": "user", "Critique": "assistant", "RevisionRequest": "user",
         "Revision": "assistant"}
MARK = re.compile(rf"(?:^|\n)\s*({'|'.join(ROLES)}):")


def conversation(text):
    """'\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nCritiqueRequest: ...' -> [(role, text)]."""
    parts = MARK.split(text)[1:]
    return [(ROLES[mark], said.strip()) for mark, said in zip(parts[::2], parts[1::2]) if said.strip()]


REFUSAL = re.compile(r"\b(I(?:'m| am) sorry|I can(?:no|')t|I(?:'m| am) (?:not able|unable)|I won't|as an AI|"
                     r"I do not feel comfortable)\b", re.I)


def evasive(text):
    """-> whether a response refuses or says nothing: fewer than 3 words, or a phrase of refusal within its first 100 characters."""
    return len(text.split()) < 3 or bool(REFUSAL.search(text[:100].replace("’", "'")))


def helpful(prompt, text):
    """-> share of the prompt's words of at least 4 letters that the response takes up: a proxy for answering what was asked, no more."""
    asked = {w for w in re.findall(r"[a-z]{4,}", prompt.lower())}
    return len(asked & set(re.findall(r"[a-z]{4,}", text.lower()))) / len(asked) if asked else 1.0
