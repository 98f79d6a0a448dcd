"""What one example of a data set is: a record of a file, its format found by its keys -> a dict with the keys of its kind.

    kind             keys                                                      is for
    text             text                                                      pretraining
    prompt           prompt                                                    rollouts, evaluation
    completion       prompt, completion                                        fine-tuning, translation, summarisation
    messages         messages: [{"role", "content"}, ...]                      chat
    preference       prompt, chosen, rejected: all str, or all lists of messages
    unpaired         prompt, completion (str or messages), label: bool         KTO
    classification   text, label: str                                          classifiers
    question         question, context, answers: [(text, first character)]     span extraction; no answer: []
    choice           prompt, choices: [str], answer: the right one's number    multiple choice
Beside these: where ("file:line"), id where the record has one, references: [str] where there are several right answers, margin of a
preference where it has one: a number, how much better the chosen answer is.
"""
import re

from pyllm.errors import FormatError

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
            "function_call": "assistant", "observation": "tool", "tool": "tool"}
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # the transcripts of hh-rlhf


def detect(record, where):
    """-> the first format of FORMATS whose keys the record has, a tuple of keys."""
    if not isinstance(record, dict):
        raise FormatError(f"{where}: expected an object, got {type(record).__name__}")
    for keys in FORMATS:
        if all(key in record for key in keys):
            return keys
    raise FormatError(f"{where}: the keys {', '.join(map(repr, list(record)[:12])) or '(none)'} are no known format; expected one of "
                      f"{'; '.join(' + '.join(keys) for keys in FORMATS)}. Hint: name the columns, for example "
                      "prompt=question,completion=answer")


def convert(record, keys, where):
    """A record of the format `keys` -> (kind, example). FormatError naming the place, the key and what was expected."""
    kind, build = FORMATS[keys]
    example = build(record, where)
    if kind == "preference" and (margin := record.get("margin")) is not None:
        if type(margin) not in (int, float) or not abs(margin) < float("inf"):
            raise FormatError(f"{where}: margin is {_short(margin)}, expected a number: how much better the chosen answer is")
        example["margin"] = margin
    if isinstance(record.get("id"), (str, int)) and record["id"] != "":
        example["id"] = record["id"]
    if isinstance(record.get("references"), list):
        example["references"] = [text_of({"references": r}, "references", where) for r in record["references"]]
    return kind, {**example, "where": where}


def rename(record, columns, where):
    """columns: {key: the name that the record has for it, with dots into objects} -> the record with that key."""
    if not columns or not isinstance(record, dict):
        return record
    record = dict(record)
    for key, name in columns.items():
        value = record
        for part in [name] if name in record else name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise FormatError(f"{where}: no column {name!r} for {key}; there are {', '.join(map(repr, list(record)[:12]))}")
            value = value[part]
        record[key] = value
    return record


# ---- fields

def text_of(record, key, where):
    """-> the str under a key; FormatError for anything else, also for the "nan" that a table library writes for a missing cell."""
    value = record[key]
    if value is None or isinstance(value, float) or type(value) is bool or not isinstance(value, (str, int)):
        raise FormatError(f"{where}: {key} is {_short(value)}, expected a string")
    value = str(value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: {key}: a lone surrogate at character {error.start} is not valid Unicode") from None
    if value in ("nan", "NaN", "<NA>"):
        raise FormatError(f"{where}: {key} is {value!r}, a missing value written as text; expected a string")
    return value


def label_of(record, key, where):
    """-> a class as str: names and whole numbers."""
    value = record[key]
    if isinstance(value, (bool, int)):
        return str(int(value))
    if isinstance(value, float) or not text_of(record, key, where).strip():
        raise FormatError(f"{where}: {key} is {_short(value)}, expected a name or a whole number")
    return value.strip()


def messages_of(value, key, where):
    """-> [{"role", "content", ...}]: content as text; of other parts than text there can be nothing."""
    if not isinstance(value, list) or not value:
        raise FormatError(f'{where}: {key} is {_short(value)}, expected a list of {{"role": ..., "content": ...}}')
    found = []
    for i, message in enumerate(value):
        at = f"{key}[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = f" has role {message.get('role')!r}" if isinstance(message, dict) else f" is {_short(message)}"
            raise FormatError(f"{where}: {at}{role}, expected a message with role {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(text_of(p, "text", where) for p in content)
        if content is None and message.get("tool_calls"):
            content = ""
        found.append({**message, "content": text_of({at: content}, at, where)})
    return found


def either(record, key, role, where):
    """-> str or messages under a key; one message alone is a list of one."""
    value = record[key]
    if isinstance(value, dict):
        value = [value]
    return messages_of(value, key, where) if isinstance(value, list) else text_of(record, key, where)


def _alike(example, keys, where):
    """All of `keys` are text, or all are messages."""
    kinds = {key: "text" if isinstance(example[key], str) else "messages" for key in keys}
    if len(set(kinds.values())) > 1:
        raise FormatError(f"{where}: {', '.join(f'{k} is {v}' for k, v in kinds.items())}; expected all text or all messages")
    return example


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}... ({type(value).__name__})"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# ---- formats

def _plain(*keys):
    return lambda record, where: {key: text_of(record, key, where) for key in keys}


def _renamed(**names):
    return lambda record, where: {key: text_of(record, name, where) for key, name in names.items()}


def _completion(record, where):
    example = {key: either(record, key, role, where) for key, role in (("prompt", "user"), ("completion", "assistant"))}
    return _alike(example, ("prompt", "completion"), where)


def _unpaired(record, where):
    label = record["label"]
    truth = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    if (label := truth.get(label.lower() if isinstance(label, str) else label)) is None:
        raise FormatError(f"{where}: label is {_short(record['label'])}, expected true or false")
    return {**_completion(record, where), "label": label}


def _preference(record, where):
    example = {key: either(record, key, role, where)
               for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))}
    return _alike(example, ("prompt", "chosen", "rejected"), where)


def _implicit(record, where):
    """chosen + rejected that both begin with the prompt: it is what they share, up to a whole message or word."""
    example = _alike({key: either(record, key, "assistant", where) for key in ("chosen", "rejected")}, ("chosen", "rejected"), where)
    chosen, rejected = example["chosen"], example["rejected"]
    if isinstance(chosen, str) and TURN.match(chosen) and TURN.match(rejected):
        chosen, rejected = _transcript(chosen), _transcript(rejected)
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        while 0 < shared and not chosen[shared - 1].isspace():
            shared -= 1
        shared = len(chosen[:shared].rstrip())
    else:  # the last message is the response, also where both are the same
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _transcript(text):
    parts = TURN.split(text)[1:]
    return [(user if who == "Human" else assistant)(said.strip()) for who, said in zip(parts[::2], parts[1::2])]


def _corrects(record, where):
    """prompt, corrects: [str], incorrects: [str], as evaluations of harmlessness have them."""
    for key in ("corrects", "incorrects"):
        if not isinstance(record[key], list) or not record[key]:
            raise FormatError(f"{where}: {key} is {_short(record[key])}, expected a list of strings")
    return _preference({"prompt": record["prompt"], "chosen": record["corrects"][0], "rejected": record["incorrects"][0]}, where)


def _instruction(record, where):
    """What alpaca asks: the instruction, and below it the input where there is one; the turns before, where there are any."""
    given = [text_of(record, key, where) for key in ("instruction", "input") if record.get(key) not in (None, "")]
    turns = record.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 and all(isinstance(s, str) for s in t) for t in turns):
        raise FormatError(f"{where}: history is {_short(turns)}, expected a list of pairs of strings")
    system = [{"role": "system", "content": text_of(record, "system", where)}] if record.get("system") else []
    return system + [f(s) for t in turns for f, s in zip((user, assistant), t)] + [user("\n\n".join(given))]


def _alpaca(record, where):
    return {"messages": [*_instruction(record, where), assistant(text_of(record, "output", where))]}


def _alpaca_preference(record, where):
    return {"prompt": _instruction(record, where), "chosen": [assistant(text_of(record, "chosen", where))],
            "rejected": [assistant(text_of(record, "rejected", where))]}


def _sharegpt(record, where):
    turns = record["conversations"]
    if isinstance(turns, list) and turns and all(isinstance(t, dict) and t.get("from") in SHAREGPT for t in turns):
        turns = [{"role": SHAREGPT[t["from"]], "content": t.get("value")} for t in turns]
        if record.get("system"):
            turns.insert(0, {"role": "system", "content": record["system"]})
    return {"messages": messages_of(turns, "conversations", where)}


def _sharegpt_preference(record, where):
    last = {key: _sharegpt({"conversations": [record[key]] if isinstance(record[key], dict) else record[key]}, where)["messages"]
            for key in ("chosen", "rejected")}
    return {"prompt": _sharegpt(record, where)["messages"], **last}


def _summary(source, *targets):
    def build(record, where):
        found = [text_of(record, key, where) for key in targets if record.get(key) is not None]
        return {"prompt": text_of(record, source, where), "completion": found[0], "references": found}
    return build


def _reference(record, where):
    """context + ref_text: a prompt that ends with "A:", the right answers with | between them."""
    found = text_of(record, "ref_text", where).split("|")
    return {"prompt": text_of(record, "context", where), "completion": f" {found[0]}", "references": found}


def _question(record, where):
    """SQuAD: answers {"text": [...], "answer_start": [...]} or [{"text", "answer_start"}, ...]; none for a question without an answer."""
    answers, example = record["answers"], _plain("question", "context")(record, where)
    if isinstance(answers, list) and all(isinstance(a, dict) for a in answers):
        answers = {key: [a.get(key) for a in answers] for key in ("text", "answer_start")}
    texts, starts = (answers.get(key) if isinstance(answers, dict) else None for key in ("text", "answer_start"))
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
            and all(isinstance(t, str) for t in texts) and all(type(s) is int for s in starts)):
        raise FormatError(f'{where}: answers is {_short(answers)}, expected {{"text": [...], "answer_start": [...]}}')
    for text, start in zip(texts, starts):
        if example["context"][start:start + len(text)] != text or start < 0:
            raise FormatError(f"{where}: the context has {example['context'][max(start, 0):start + len(text)]!r} at character {start}, "
                              f"the answer is {text!r}")
    return {**example, "answers": list(zip(texts, starts)), "references": list(dict.fromkeys(texts))}


def _choice(prompt, choices, answer):
    """A prompt, its choices (or {"text": [...], "label": [...]}), and which is right: its number from 0, its letter, label or text."""
    def build(record, where):
        several, labels = record[choices], None
        if isinstance(several, dict):
            several, labels = several.get("text"), several.get("label")
        if not (isinstance(several, list) and len(several) > 1 and all(isinstance(c, str) and c.strip() for c in several)):
            raise FormatError(f"{where}: {choices} is {_short(record[choices])}, expected a list of at least two strings")
        labels, right = labels or [chr(65 + i) for i in range(len(several))], record[answer]
        numbers = {**{c: i for i, c in enumerate(several)}, **{str(i): i for i in range(len(several))},
                   **{label: i for i, label in enumerate(labels)}}
        if type(right) not in (int, str) or str(right) not in numbers:
            raise FormatError(f"{where}: {answer} is {_short(right)}, expected 0 to {len(several) - 1}, {labels[0]} to {labels[-1]}, "
                              f"or one of {choices}")
        return {"prompt": text_of(record, prompt, where), "choices": several, "answer": numbers[str(right)]}
    return build


FORMATS = {  # keys: (kind, function of a record); the first whose keys are all there
    ("messages",): ("messages", lambda record, where: {"messages": messages_of(record["messages"], "messages", where)}),
    ("conversations", "chosen", "rejected"): ("preference", _sharegpt_preference),
    ("conversations",): ("messages", _sharegpt),
    ("prompt", "chosen", "rejected"): ("preference", _preference),
    ("instruction", "chosen", "rejected"): ("preference", _alpaca_preference),
    ("chosen", "rejected"): ("preference", _implicit),
    ("prompt", "completion", "label"): ("unpaired", _unpaired),
    ("prompt", "completion"): ("completion", _completion),
    ("prompt", "response"): ("completion", _renamed(prompt="prompt", completion="response")),
    ("prompt", "corrects", "incorrects"): ("preference", _corrects),
    ("instruction", "output"): ("messages", _alpaca),
    ("source", "target"): ("completion", _renamed(prompt="source", completion="target")),
    ("dialogue", "summary"): ("completion", _summary("dialogue", "summary")),
    ("dialogue", "summary1"): ("completion", _summary("dialogue", "summary1", "summary2", "summary3")),
    ("article", "highlights"): ("completion", _summary("article", "highlights")),
    ("document", "summary"): ("completion", _summary("document", "summary")),
    ("prompt", "choices", "answer"): ("choice", _choice("prompt", "choices", "answer")),
    ("question", "choices", "answer"): ("choice", _choice("question", "choices", "answer")),
    ("question", "choices", "answerKey"): ("choice", _choice("question", "choices", "answerKey")),
    ("ctx", "endings", "label"): ("choice", _choice("ctx", "endings", "label")),
    ("question", "context", "answers"): ("question", _question),
    ("question", "answer"): ("messages", lambda record, where: {"messages": [
        user(text_of(record, "question", where)), assistant(text_of(record, "answer", where))]}),
    ("context", "ref_text"): ("completion", _reference),
    ("text", "label"): ("classification", lambda record, where: {
        "text": text_of(record, "text", where), "label": label_of(record, "label", where)}),
    ("sentence", "label"): ("classification", lambda record, where: {
        "text": text_of(record, "sentence", where), "label": label_of(record, "label", where)}),
    ("text",): ("text", _plain("text")),
    ("prompt",): ("prompt", lambda record, where: {"prompt": either(record, "prompt", "user", where)}),
}
