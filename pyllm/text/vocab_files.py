"""Vocabularies that are not tokenizer.json: SentencePiece .model, vocab.json with merges.txt, vocab.txt. Each becomes what tokenizer.json
would hold and is built from that. What such files leave open is taken from tokenizer_config.json, special_tokens_map.json and
added_tokens.json beside them."""
from pathlib import Path

from ..errors import FormatError
from .bpe import byte_level
from .pattern import short
from .spiece import as_json, read_pieces
from .template import around
from .tokenizer_json import build, read_file, read_object, read_roles

BOS = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"}
SHIFTED = {"XLMRobertaTokenizer", "CamembertTokenizer", "MBartTokenizer", "MBart50Tokenizer", "BarthezTokenizer", "NllbTokenizer"}


def read_other(path, config):
    """path: a .model, vocab.json or encoder.json, or vocab.txt; config: tokenizer_config.json or {} -> a Tokenizer."""
    path = Path(path)
    beside = read_object(path.parent / "special_tokens_map.json") if (path.parent / "special_tokens_map.json").is_file() else {}
    roles = read_roles({**beside, **config})
    if path.suffix == ".model":
        data, own = _spiece(path, config)
        roles = {**own, **roles}
    elif path.suffix == ".json":
        data = _byte_level(path, config)
    elif path.suffix == ".txt":
        data = _word_piece(path, config)
    else:
        raise FormatError(f"{path}: no tokenizer file; expected tokenizer.json, a .model of SentencePiece, "
                          "vocab.json beside merges.txt, or vocab.txt")
    _add_tokens(data, path.parent, config, roles)
    return build(data, roles, config)


def _class(config):
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def _spiece(path, config):
    name = _class(config)
    if name in SHIFTED:
        raise FormatError(f"{path}: the ids of {name} are not those of its SentencePiece file; it needs a tokenizer.json")
    found = read_pieces(read_file(path))
    bos = config.get("add_bos_token", name in BOS) is True
    eos = config.get("add_eos_token", name == "T5Tokenizer") is True
    data, roles = as_json(found, bos, eos)
    tokens = [token for token, *_ in found.pieces]
    if name == "AlbertTokenizer" and {"[CLS]", "[SEP]"} <= set(tokens):
        data["post_processor"] = around("[CLS]", "[SEP]", tokens, sep=True)
    return data, roles


def _byte_level(path, config):
    merges = path.with_name("merges.txt" if path.name == "vocab.json" else "vocab.bpe")
    if not merges.is_file():
        raise FormatError(f"{path}: {merges.name} is missing beside it")
    try:
        lines = read_file(merges).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{merges}: not UTF-8: {str(error)[:100]}") from None
    prefix = config.get("add_prefix_space", False) is True
    lines = [line.rstrip("\r") for line in lines if line.strip("\r ") and not line.startswith("#version")]
    model = {"type": "BPE", "vocab": read_object(path), "merges": lines}
    return {"model": model, "added_tokens": [], "pre_tokenizer": byte_level(prefix, True), "decoder": byte_level(True, True)}


def _word_piece(path, config):
    try:
        tokens = read_file(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {str(error)[:100]}") from None
    tokens = [token.rstrip("\r") for token in (tokens[:-1] if tokens and not tokens[-1] else tokens)]
    if len(set(tokens)) != len(tokens):
        raise FormatError(f"{path}: {len(tokens) - len(set(tokens))} lines stand twice")
    low = config.get("do_lower_case", True) is not False
    return word_piece(tokens, low, config.get("strip_accents"), config.get("tokenize_chinese_chars", True) is not False)


def word_piece(tokens, lowercase=True, strip_accents=None, chinese=True):
    """tokens: list of str by id -> what tokenizer.json holds, with BERT's rules."""
    vocab = {token: i for i, token in enumerate(tokens)}
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab]
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": chinese, "strip_accents": strip_accents,
                  "lowercase": lowercase}
    return {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                      "vocab": vocab},
            "added_tokens": [_token(vocab[content], content) for content in special], "normalizer": normalizer,
            "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "post_processor": around("[CLS]", "[SEP]", tokens, sep=True) if {"[CLS]", "[SEP]"} <= set(special) else None}


def _token(i, content, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
            **flags}


def _add_tokens(data, folder, config, roles):
    """Adds what tokenizer_config.json (added_tokens_decoder) and added_tokens.json name, and roles that are in the vocabulary."""
    vocab = data["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {piece[0]: i for i, piece in enumerate(vocab)}
    found = {token["content"]: token for token in data["added_tokens"]}
    extra = read_object(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    for content, i in extra.items():
        found.setdefault(content, _token(i, content, special=content in roles.values()))
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise FormatError(f"added_tokens_decoder is {short(decoder)}, expected an object")
    for i, token in decoder.items():
        if not i.isdecimal() or len(i) > 9 or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise FormatError(f"added_tokens_decoder[{i!r:.20}] is {short(token)}, expected an id and an object with `content`")
        known = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {key: token[key] for key in known if key in token}
        found[token["content"]] = _token(int(i), token["content"], **{"special": False, **flags})
    for content in roles.values():
        if content is not None and content in ids:
            found.setdefault(content, _token(ids[content], content))
    data["added_tokens"] = sorted(found.values(), key=lambda token: (not isinstance(token["id"], int), token["id"]))
