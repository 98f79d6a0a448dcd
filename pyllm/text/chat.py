"""Chat templates: messages -> the text, and the ids, of a conversation as a model was tuned on it.

A template is the name of a built-in one, or Jinja text, which the sandbox of the package jinja2 renders. What a message holds is text:
a special token written there is encoded like any other characters, and only the template's own become their ids.
"""
import re
from functools import lru_cache

import numpy as np

from ..errors import ConfigError, FormatError

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # no characters of any text: Unicode keeps them for uses like this
ROLE = re.compile(r"[\w.-]+")


def chatml(messages, generate):
    """<|im_start|>user, a line end, the text, <|im_end|>: OpenAI's markup, Qwen's and SmolLM's."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + ("<|im_start|>assistant\n" if generate else "")


def llama3(messages, generate):
    """<|start_header_id|>user<|end_header_id|>, an empty line, the text, <|eot_id|>."""
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = [head.format(m["role"]) + m["content"].strip() + "<|eot_id|>" for m in messages]
    return "".join(turns) + (head.format("assistant") if generate else "")


def gemma(messages, generate):
    """<start_of_turn>user, a line end, the text, <end_of_turn>; the assistant is called model, a system text opens the first turn."""
    first, messages = "", list(messages)
    if messages[0]["role"] == "system":
        first = messages.pop(0)["content"] + "\n\n"
    turns = []
    for m in messages:
        role = "model" if m["role"] == "assistant" else m["role"]
        turns.append(f"<start_of_turn>{role}\n{first}{m['content'].strip()}<end_of_turn>\n")
        first = ""
    return "".join(turns) + ("<start_of_turn>model\n" if generate else "")


def alpaca(messages, generate):
    """### Instruction, ### Response in plain words (Taori et al. 2023): for tokenizers that have no tokens for turns; the EOS ends one."""
    named = {"user": "### Instruction:\n", "assistant": "### Response:\n"}
    turns = [] if messages[0]["role"] == "system" else [TASK]
    turns += [named.get(m["role"], "") + m["content"] for m in messages] + [named["assistant"]] * generate
    return "\n\n".join(turns)


TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
BUILT_IN = {  # name -> its function, its tokens, the same as Jinja text, which files hold
    "chatml": (chatml, ("<|im_start|>", "<|im_end|>"), (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")),
    "llama3": (llama3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), (
        "{% set head = '<|start_header_id|>%s<|end_header_id|>\\n\\n' %}"
        "{% for m in messages %}{{ head % m['role'] + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ head % 'assistant' }}{% endif %}")),
    "gemma": (gemma, ("<start_of_turn>", "<end_of_turn>"), (
        "{% set head = namespace(text='') %}{% if messages[0]['role'] == 'system' %}"
        "{% set head.text = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + head.text"
        " + m['content'] | trim + '<end_of_turn>\\n' }}{% set head.text = '' %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}")),
    "alpaca": (alpaca, (), (
        "{% if messages[0]['role'] != 'system' %}{{ '" + TASK + "' }}{% endif %}"
        "{% for m in messages %}{{ '' if loop.first and m['role'] == 'system' else '\\n\\n' }}"
        "{{ {'user': '### Instruction:\\n', 'assistant': '### Response:\\n'}.get(m['role'], '') + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}")),
}
BOS = "{{ bos_token }}"  # stands before the text of a built-in one where the tokenizer puts a BOS before every text


def encode(tokenizer, messages, add_generation_prompt=True, **variables):
    """messages -> list of ids: what Tokenizer.chat gives."""
    text, closed = render(tokenizer, messages, add_generation_prompt, variables)
    ids = tokenizer._pieces(text, True, False, closed)[0].tolist()
    if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
        raise FormatError(f"chat: the chat template writes the BOS {tokenizer.token(tokenizer.bos_id)!r} twice; expected one")
    return ids


def render(tokenizer, messages, add_generation_prompt=True, variables=None):
    """messages -> the text, and closed: (start, stop) in it that belong to messages, where no special token is."""
    messages, variables = _checked(messages), dict(variables or {})
    name, template = _chosen(tokenizer, variables.get("tools"))
    opening, closing = _marks(messages, variables)
    mark = _marker(tokenizer, opening, closing)
    messages = [{key: value if key == "role" else mark(value) for key, value in m.items()} for m in messages]
    roles = {f"{role}_token": tokenizer.token(i) for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
             if (i := getattr(tokenizer, f"{role}_id")) is not None}
    if name is not None:
        text = _built_in(tokenizer, name, messages, add_generation_prompt)
    else:
        from .sandbox import render as run

        text = run(template, {**roles, "tools": None, "documents": None, **mark(variables), "messages": messages,
                              "add_generation_prompt": add_generation_prompt})
    return _unmarked(text, opening, closing)


def declared(tokenizer, messages, **variables):
    """messages -> list of bool: which ids of `encode` without a generation prompt the template puts into its {% generation %} blocks, as
    what the assistant says; None for a template that has no such block."""
    template = _chosen(tokenizer, variables.get("tools"))[1]
    if template is None or not re.search(r"{%[-+]?\s*generation\b", template):
        return None
    begins, ends = _marks(messages, variables)
    marked, _ = render(tokenizer, messages, False, {**variables, "generation_begins": begins, "generation_ends": ends})
    text, closed = render(tokenizer, messages, False, variables)
    inside, at = np.zeros(len(text), bool), 0
    for i, part in enumerate(re.split(f"[{begins}{ends}]", marked)):
        inside[at:at + len(part)] = i % 2 == 1
        at += len(part)
    _, places = tokenizer._pieces(text, True, True, closed)
    return [bool(inside[start:stop].all()) and stop > start for start, stop in places.tolist()]


TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|end_of_turn|>", "<|endofturn|>")


def turn_ends(tokenizer):
    """-> ids of the special tokens that end a turn of chats everywhere, of a tokenizer with a chat template; what turn_end asks the
    template costs a rendering."""
    if tokenizer is None or tokenizer.chat_template is None:
        return []
    return [token.id for token in tokenizer.added if token.special and token.content in TURN_ENDS]


def turn_end(tokenizer):
    """-> the token that ends what the assistant says, as the template writes it; None where that is no special token."""
    probe, special = "answer", {token.id for token in tokenizer.added if token.special}
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": probe}]
    text, _ = render(tokenizer, talk, add_generation_prompt=False)
    rest = tokenizer._pieces(text[text.rfind(probe) + len(probe) :], True, False)[0].tolist()
    return next((tokenizer.token(i) for i in rest if i in special), None)


def named_templates(value):
    """value: chat_template of tokenizer_config.json -> None, the text, or {name: text} of several; FormatError for anything else."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str)
                                       for t in value):
        return {t["name"]: t["template"] for t in value}
    raise FormatError(f"chat_template is {str(value)[:80]!r}; expected a text, or a list of objects with name and template")


def as_file(tokenizer):
    """-> what chat_template of tokenizer_config.json holds for tokenizer.chat_template; the Jinja text of a built-in one."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    if template in BUILT_IN:
        return (BOS if tokenizer.puts_bos else "") + BUILT_IN[template][2]
    return template


def _checked(messages):
    """-> a list of dicts with a role and, most of them, a content; keys that are None left out."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"chat: messages is {str(messages)[:60]!r}; expected a list of at least one {{\"role\": ..., \"content\": ...}}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"chat: message {i} is a {type(message).__name__}; expected {{\"role\": ..., \"content\": ...}}")
        if not isinstance(message.get("role"), str) or not ROLE.fullmatch(message["role"]):
            raise ValueError(f"chat: message {i} has the role {str(message.get('role'))[:60]!r}; expected a word such as system, user, "
                             "assistant, tool")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise ValueError(f"chat: message {i} has a content of type {type(message['content']).__name__}; expected a str")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _chosen(tokenizer, tools):
    """-> (name of a built-in template, None) or (None, Jinja text)."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        wanted = "tool_use" if tools is not None and "tool_use" in template else "default"
        if wanted not in template:
            raise ConfigError(f"chat: the tokenizer has the chat templates {', '.join(template)}, none of them default. Hint: "
                              "tokenizer.chat_template = tokenizer.chat_template[NAME]")
        template = template[wanted]
    if template is None:
        raise ConfigError("chat: the tokenizer has no chat template: its model may never have seen a chat. Hint: tokenizer.chat_template = "
                          f"one of {', '.join(BUILT_IN)}, or a Jinja text")
    if template in BUILT_IN:
        return template, None
    plain = template.removeprefix(BOS)
    name = next((name for name, (_, _, text) in BUILT_IN.items() if text == plain), None)
    return (name, None) if name and (plain != template) == tokenizer.puts_bos else (None, template)


def _built_in(tokenizer, name, messages, generate):
    function, tokens, _ = BUILT_IN[name]
    missing = [token for token in tokens if token not in {t.content for t in tokenizer.added}]
    if missing:
        raise ConfigError(f"chat: the template {name} needs the tokens {', '.join(tokens)}; the tokenizer does not have "
                          f"{', '.join(missing)}. Hint: special_tokens=[...] of its training")
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
        if content is None:
            raise ValueError(f"chat: message {i} has no content; the template {name} has no place for anything else")
        messages[i] = {**message, "content": content}
    return (tokenizer.token(tokenizer.bos_id) if tokenizer.puts_bos else "") + function(messages, generate)


# ---- special tokens that messages hold -------------------------------------------------------------------------------------


@lru_cache(8)
def _specials(contents):
    """-> expression that finds a special token; beginnings and ends of one; the longest one's length less 1."""
    find = re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))) or "(?!)")
    begins = {content[:n] for content in contents for n in range(1, len(content))}
    ends = {content[n:] for content in contents for n in range(1, len(content))}
    return find, begins, ends, max(map(len, contents), default=1) - 1


def _marks(*values):
    """-> two of MARKS that no string in the values holds."""
    used = set()

    def walk(value):
        if isinstance(value, str):
            used.update(c for c in MARKS if c in value)
        elif isinstance(value, dict):
            walk([*value, *value.values()])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)

    try:
        walk(values)
    except RecursionError:
        raise ValueError("chat: messages are nested too deep") from None
    free = [c for c in MARKS if c not in used]
    if len(free) < 2:
        raise ValueError("chat: messages hold all noncharacters U+FDD0 to U+FDEF; expected two of them to be free")
    return free[:2]


def _marker(tokenizer, opening, closing):
    """-> function: a value -> the same of plain types, special tokens in its strings between marks.

    So are a beginning of one at a string's end and an end of one at its beginning: what stands beside them must not complete them.
    """
    normalized = any(token.special and token.normalized for token in tokenizer.added)
    spelled = (token.content for token in tokenizer.added if token.special)
    find, begins, ends, longest = _specials((*spelled, *(tokenizer.normalized(t.content) for t in tokenizer.added if normalized)))

    def tokens(text):
        return find.sub(lambda match: opening + match.group() + closing, text)

    def marked(value):
        text, most = tokens(value), min(longest, len(value))
        tail = next((n for n in range(most, 0, -1) if value[-n:] in begins and text.endswith(value[-n:])), 0)
        if tail:
            text = text[:-tail] + opening + text[-tail:] + closing
        head = next((n for n in range(most, 0, -1) if value[:n] in ends and text.startswith(value[:n])), 0)
        return opening + text[:head] + closing + text[head:] if head else text

    def mark(value):
        if isinstance(value, str):
            if normalized and marked(tokenizer.normalized(value)) != tokenizer.normalized(value):
                return opening + value + closing  # there is one once it is normalized, and who knows where
            return marked(str(value))
        if isinstance(value, dict):
            return {tokens(key) if isinstance(key, str) else key: mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [mark(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise TypeError(f"chat: a {type(value).__name__} among the messages; expected what JSON knows")

    return mark


def _unmarked(text, opening, closing):
    """-> the text without marks; (start, stop) of what stood between two; of a mark alone, the place where it stood, twice."""
    parts, closed, at = [], [], 0
    for match in re.finditer(f"{opening}([^{opening}{closing}]*){closing}|[{opening}{closing}]|[^{opening}{closing}]+", text):
        part = match.group(1) if match.group(1) is not None else match.group().strip(opening + closing)
        if match.group()[0] in (opening, closing):
            closed.append((at, at + len(part)))
        parts.append(part)
        at += len(part)
    return "".join(parts), closed
