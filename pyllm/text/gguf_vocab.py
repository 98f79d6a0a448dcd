"""Vocabularies in GGUF files: the keys tokenizer.ggml.* -> a Tokenizer."""
from ..errors import FormatError
from .bpe import byte_level, write_pre_tokenizer
from .pattern import short
from .spiece import BPE, CONTROL, UNIGRAM, UNKNOWN, USER_DEFINED, Pieces, as_json
from .split import DIGITS, GPT2, LLAMA3, O200K, QWEN2
from .template import around
from .tokenizer_json import build
from .vocab_files import word_piece

PRE = {"gpt-2": GPT2, "default": GPT2, "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "qwen2": QWEN2, "smollm": DIGITS,
       "gpt-4o": O200K, "roberta-bpe": GPT2, "jina-v2-en": GPT2, "phi-2": GPT2, "starcoder": DIGITS, "refact": DIGITS, "command-r": DIGITS}
MODELS = ("gpt2", "llama", "bert", "t5")


def from_gguf(metadata):
    """metadata: dict of a GGUF file's keys, arrays as sequences -> a Tokenizer. FormatError where a key is missing or unknown."""
    def key(name, kind, default=None):
        value = metadata.get(f"tokenizer.ggml.{name}", default)
        value = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(value, kind):
            raise FormatError(f"tokenizer.ggml.{name} is {short(value)}, expected {getattr(kind, '__name__', kind)}")
        return value

    template = metadata.get("tokenizer.chat_template")
    config = {"chat_template": template} if isinstance(template, str) else {}
    model, tokens, count = key("model", str), list(key("tokens", (list, tuple))), 0
    types = list(key("token_type", (list, tuple), [1] * len(tokens)))
    if model not in MODELS:
        raise FormatError(f"tokenizer.ggml.model is {model!r:.60}; supported: {', '.join(MODELS)}")
    if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise FormatError(f"tokenizer.ggml.tokens has {len(tokens)} entries, token_type {len(types)}; expected as many, all strings")
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in (
        ("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"), ("sep", "seperator"), ("cls", "cls"), ("mask", "mask"))}
    ids = {role: int(i) for role, i in ids.items() if i is not None and 0 <= int(i) < len(tokens)}
    bos, eos = (key(f"add_{role}_token", bool, default) for role, default in (("bos", model == "llama"), ("eos", model == "t5")))
    if model in ("llama", "t5"):
        scores = list(key("scores", (list, tuple), [0.0] * len(tokens)))
        if len(scores) != len(tokens):
            raise FormatError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
        found = Pieces(list(zip(tokens, map(float, scores), types)), BPE if model == "llama" else UNIGRAM, model == "llama",
                       bytes(key("precompiled_charsmap", (list, tuple, bytes), b"")), key("add_space_prefix", bool, True),
                       key("remove_extra_whitespaces", bool, model == "t5"), True, {"unk": -1, "bos": -1, "eos": -1, "pad": -1, **ids})
        if found.ids["unk"] < 0:
            found.ids["unk"] = next((i for i, kind in enumerate(types) if kind == UNKNOWN), -1)
        data, roles = as_json(found, bos, eos)
        return build(data, {**roles, **{role: tokens[i] for role, i in ids.items()}}, config)
    if model == "bert":
        spelled = [token if kind in (CONTROL, UNKNOWN) or token[:1] == "[" and token[-1:] == "]" else token[1:] if token[:1] == "\u2581"
                   else f"##{token}" for token, kind in zip(tokens, types)]
        return build(word_piece(spelled), {role: spelled[i] for role, i in ids.items()}, config)
    pre = key("pre", str, "default")
    if pre not in PRE:
        raise FormatError(f"tokenizer.ggml.pre is {pre!r:.60}; supported: {', '.join(PRE)}")
    vocab = {}
    for i, token in enumerate(tokens):  # some files pad a vocabulary with one token again and again
        vocab[token if token not in vocab else f"{token}<{(count := count + 1)}>"] = i
    roles = {role: tokens[i] for role, i in ids.items()}
    added = [{"id": i, "content": token, "special": kind != USER_DEFINED}
             for (token, i), kind in zip(vocab.items(), types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    data = {"model": {"type": "BPE", "vocab": vocab, "merges": list(key("merges", (list, tuple))),
                      "ignore_merges": pre in ("llama-bpe", "llama3", "llama-v3")},
            "added_tokens": added, "pre_tokenizer": write_pre_tokenizer(PRE[pre], key("add_space_prefix", bool, False)),
            "decoder": byte_level(True, True), "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
            "post_processor": around(roles.get("bos") if bos else None, roles.get("eos") if eos else None, tokens)}
    return build(data, roles, config)
