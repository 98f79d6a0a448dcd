"""Vocabularies in GGUF files: the keys tokenizer.ggml.* <-> a Tokenizer."""
import warnings

from ..errors import ConfigError, FormatError
from .bpe import ByteLevelBPE, byte_level, write_pre_tokenizer
from .chat import as_file
from .pattern import short
from .sentencepiece import SentencePieceBPE
from .spiece import BPE, BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, UNUSED, USER_DEFINED, Pieces, as_json
from .split import DIGITS, GPT2, LLAMA3, O200K, QWEN2, TEKKEN
from .template import around
from .tokenizer_json import build
from .vocab_files import word_piece
from .wordpiece import WordPiece
from .words import MARK

# tokenizer.ggml.pre -> split pattern, of the architectures that pyllm computes; the first name of a pattern is the one that is written
PRE = {"gpt-2": GPT2, "default": GPT2, "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "qwen2": QWEN2, "smollm": DIGITS,
       "gpt-4o": O200K, "tekken": TEKKEN, "roberta-bpe": GPT2, "jina-v2-en": GPT2, "phi-2": GPT2, "starcoder": DIGITS, "refact": DIGITS,
       "command-r": DIGITS, "minerva-7b": DIGITS, "falcon3": LLAMA3, "pixtral": LLAMA3, "smaug-bpe": LLAMA3, "deepseek-r1-qwen": QWEN2,
       "megrez": QWEN2, "mellum": GPT2, "a.x-4.0": GPT2, "trillion": GPT2, "granite-docling": GPT2, "mpt": GPT2}
MODELS = ("gpt2", "llama", "bert", "t5")
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "cls": "cls", "mask": "mask"}
WHOLE = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")  # words that are tokens are taken whole; a BOS comes first


def from_gguf(metadata):
    """metadata: dict of a GGUF file's keys, arrays as sequences -> a Tokenizer. FormatError where a key is missing or unknown."""
    def key(name, kind, default=None):
        value = metadata.get(f"tokenizer.ggml.{name}", default)
        value = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(value, kind):
            raise FormatError(f"tokenizer.ggml.{name} is {short(value)}, expected {getattr(kind, '__name__', kind)}")
        return value

    template, names = metadata.get("tokenizer.chat_template"), metadata.get("tokenizer.chat_templates", [])
    named = {n: metadata.get(f"tokenizer.chat_template.{n}") for n in (names if isinstance(names, list) else []) if n != "default"}
    if named:
        template = [{"name": n, "template": t} for n, t in {"default": template, **named}.items() if t is not None]
    config = {} if template is None else {"chat_template": template}
    model, tokens, count = key("model", str), list(key("tokens", (list, tuple))), 0
    types = list(key("token_type", (list, tuple), [NORMAL] * len(tokens)))
    if model not in MODELS:
        raise FormatError(f"tokenizer.ggml.model is {model!r:.60}; supported: {', '.join(MODELS)}")
    if len(types) != len(tokens) or set(map(type, tokens)) - {str}:
        raise FormatError(f"tokenizer.ggml.tokens has {len(tokens)} entries, token_type {len(types)}; expected as many, all strings")
    stated = len(tokens)
    while tokens and types[-1] == UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":  # rows of the model that no token has
        del tokens[-1], types[-1]
    ids = {role: key(f"{name}_token_id", (int, type(None))) for role, name in ROLES.items()}
    ids = {role: i for role, i in ids.items() if i is not None and 0 <= i < len(tokens)}
    pre = key("pre", str, "default")
    usual = {"bos": model == "llama" or pre in WHOLE, "eos": model == "t5"}
    bos, eos = (key(f"add_{role}_token", bool, default) for role, default in usual.items())
    if model in ("llama", "t5"):
        scores = list(key("scores", (list, tuple), [0.0] * stated))
        if len(scores) != stated:
            raise FormatError(f"tokenizer.ggml.scores has {len(scores)} entries for {stated} tokens")
        found = Pieces(list(zip(tokens, map(float, scores), types)), BPE if model == "llama" else UNIGRAM, model == "llama",
                       bytes(key("precompiled_charsmap", (list, tuple, bytes), b"")), key("add_space_prefix", bool, True),
                       key("remove_extra_whitespaces", bool, model == "t5"), True, {"unk": -1, "bos": -1, "eos": -1, "pad": -1, **ids})
        if found.ids["unk"] < 0:
            found.ids["unk"] = next((i for i, kind in enumerate(types) if kind == UNKNOWN), -1)
        data, roles = as_json(found, bos, eos)
        return build(data, {**roles, **{role: tokens[i] for role, i in ids.items()}}, config)
    if model == "bert":
        spelled = [token if kind in (CONTROL, UNKNOWN) or token[:1] == "[" and token[-1:] == "]" else token[1:] if token[:1] == MARK
                   else f"##{token}" for token, kind in zip(tokens, types)]
        return build(word_piece(spelled), {role: spelled[i] for role, i in ids.items()}, config)
    if pre == "default":
        warnings.warn("tokenizer.ggml.pre names no split pattern: GPT-2's is taken, and ids may differ from those the model learned with. "
                      "Hint: a file converted again by a newer llama.cpp names it", stacklevel=4)
    if pre not in PRE:
        raise FormatError(f"tokenizer.ggml.pre is {pre!r:.60}; supported: {', '.join(PRE)}")
    vocab = {}
    for i, token in enumerate(tokens):  # some files pad a vocabulary with one token again and again
        vocab[token if token not in vocab else f"{token}<{(count := count + 1)}>"] = i
    roles = {role: tokens[i] for role, i in ids.items()}
    added = [{"id": i, "content": token, "special": kind != USER_DEFINED}
             for (token, i), kind in zip(vocab.items(), types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    data = {"model": {"type": "BPE", "vocab": vocab, "merges": list(key("merges", (list, tuple))),
                      "ignore_merges": pre in WHOLE},
            "added_tokens": added, "pre_tokenizer": write_pre_tokenizer(PRE[pre], key("add_space_prefix", bool, False)),
            "decoder": byte_level(True, True), "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
            "post_processor": around(roles.get("bos") if bos else None, roles.get("eos") if eos else None, tokens)}
    return build(data, roles, config)


PROBE = " Hello world's  1234,5678\n\n \tÄé\u0301 日本語 \U0001f642 don't DON'T x=[1];\r\n   end "


def to_gguf(tokenizer, size):
    """size: the rows of the model's embedding, at least as many as there are tokens -> {key of a GGUF file: value}.

    ConfigError where the format cannot say what the tokenizer does: what is written is read again and must give the same ids.
    """
    kind = type(tokenizer).__name__
    if not isinstance(tokenizer, (ByteLevelBPE, SentencePieceBPE, WordPiece)):
        raise ConfigError(f"GGUF: a {kind} has no place in the format; expected a ByteLevelBPE, a SentencePieceBPE or a WordPiece")
    tokens = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    types = [NORMAL] * len(tokens)
    for token in tokenizer.added:
        types[token.id] = CONTROL if token.special else USER_DEFINED
    keys = {"add_bos_token": tokenizer.puts_bos, "add_eos_token": tokenizer._template.single[-1][0] == tokenizer.eos_id is not None}
    if isinstance(tokenizer, ByteLevelBPE):
        steps, whole = tokenizer.parts["pre_tokenizer"], tokenizer.ignore_merges
        pre = next((name for name, pattern in PRE.items() if (name in WHOLE) == whole and (name == "qwen2") == bool(
            tokenizer.parts.get("normalizer")) and write_pre_tokenizer(pattern, tokenizer.add_prefix_space) == steps), None)
        if pre is None:
            raise ConfigError(f"GGUF: its split pattern has no name in the format: {short(steps)}")
        keys |= {"model": "gpt2", "pre": pre, "add_space_prefix": tokenizer.add_prefix_space,
                 "merges": [f"{left} {right}" for left, right in tokenizer.merges]}
    elif isinstance(tokenizer, WordPiece):  # a piece that begins a word is marked, not one inside
        tokens = [token if kind != NORMAL else token[2:] if token.startswith("##") else MARK + token for token, kind in zip(tokens, types)]
        keys = {"model": "bert", "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    else:
        for i in tokenizer.user_defined:
            types[i] = USER_DEFINED
        types = [BYTE if len(token) == 6 and token.startswith("<0x") and kind == NORMAL else kind for token, kind in zip(tokens, types)]
        if tokenizer.unk_token is not None:
            types[tokenizer.id(tokenizer.unk_token)] = UNKNOWN
        ranks = {}
        for rank, (left, right) in enumerate(tokenizer.merges):
            ranks.setdefault(left + right, -float(rank))
        keys |= {"model": "llama", "pre": "default", "scores": [ranks.get(token, -float(len(ranks))) for token in tokens],
                 "add_space_prefix": tokenizer.encode("a a")[-1] == tokenizer.encode("a")[-1]}
    unused = range(len(tokens), size)
    keys |= {"tokens": tokens + [f"[PAD{i}]" for i in unused], "token_type": types + [UNUSED] * len(unused)}
    if "scores" in keys:
        keys["scores"] += [-float(len(tokens))] * len(unused)
    ids = {name: getattr(tokenizer, f"{role}_id") for role, name in ROLES.items()}
    keys |= {f"{name}_token_id": i for name, i in ids.items() if i is not None}
    keys = {key: value for key, value in keys.items() if value is not None}
    found = {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value != []}
    templates = as_file(tokenizer)
    if isinstance(templates, list):
        others = {t["name"]: t["template"] for t in templates}
        templates = others.pop("default", None)
        found |= {"tokenizer.chat_templates": list(others), **{f"tokenizer.chat_template.{n}": text for n, text in others.items()}}
    if templates is not None:
        found["tokenizer.chat_template"] = templates
    _check(tokenizer, from_gguf(found))
    return found


def _check(tokenizer, again):
    """ConfigError unless a tokenizer that was written and read gives the same ids."""
    first = range(min(2000, tokenizer.vocab_size))
    texts = [PROBE, *(token.content for token in tokenizer.added), tokenizer.decode(first, skip_special=True)]
    if [what for what, _ in tokenizer._template.single] != [what for what, _ in again._template.single]:
        raise ConfigError("GGUF: the format knows a BOS before and an EOS behind a text; this tokenizer puts other tokens there")
    for text in texts:
        ours, theirs = (t._pieces(text, True, False)[0].tolist() for t in (tokenizer, again))
        if ours != theirs:
            raise ConfigError(f"GGUF: the format cannot say what this tokenizer does: {text!r:.60} is {short(ours)}, and read again "
                              f"{short(theirs)}")
