"""Post-processors of tokenizer.json: which tokens go around a text or a pair of texts, and how offsets are trimmed."""
from dataclasses import dataclass

from ..errors import FormatError
from .pattern import short

TEXT_A, TEXT_B = "A", "B"


@dataclass(frozen=True)
class Template:
    """single, pair: tuples of (id or TEXT_A or TEXT_B, type id); trim: None, or whether the space of a first word was put there
    (byte-level: offsets leave out the white space at both ends of a token)."""

    single: tuple = ((TEXT_A, 0),)
    pair: tuple = ((TEXT_A, 0), (TEXT_B, 1))
    trim: bool | None = None

    def around(self, pair=False):
        """Number of tokens beside the texts."""
        return sum(isinstance(what, int) for what, _ in (self.pair if pair else self.single))


def read_template(spec, id_of):
    """spec: a post-processor as tokenizer.json writes it, or None; id_of: token -> id or None -> Template."""
    kind = spec.get("type") if isinstance(spec, dict) else None
    if spec is None:
        return Template()
    if kind == "ByteLevel":
        return Template(trim=bool(spec.get("add_prefix_space", True)) if spec.get("trim_offsets", True) else None)
    if kind in ("BertProcessing", "RobertaProcessing"):
        cls, sep = (_named(spec, key, id_of) for key in ("cls", "sep"))
        single = ((cls, 0), (TEXT_A, 0), (sep, 0))
        if kind == "BertProcessing":
            return Template(single, (*single, (TEXT_B, 1), (sep, 1)))
        trim = bool(spec.get("add_prefix_space", True)) if spec.get("trim_offsets", True) else None
        return Template(single, (*single, (sep, 0), (TEXT_B, 0), (sep, 0)), trim)
    if kind == "TemplateProcessing":
        return Template(_items(spec, "single", id_of), _items(spec, "pair", id_of))
    if kind == "Sequence" and isinstance(spec.get("processors"), list) and len(spec["processors"]) <= 64:
        whole = Template()
        for part in spec["processors"]:
            step = read_template(part, id_of)
            plain = step.single == Template.single
            if not plain and whole.single != Template.single:
                raise FormatError(f"post_processor is {short(spec)}; of a Sequence one step at most may add tokens")
            whole = Template(whole.single if plain else step.single, whole.pair if plain else step.pair,
                             whole.trim if step.trim is None else step.trim)
        return whole
    raise FormatError(f"post_processor is {short(spec)}; supported: TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, "
                      "Sequence, null")


def _named(spec, key, id_of):
    """["[SEP]", 102] -> 102."""
    value = spec.get(key)
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str) or id_of(value[0]) != value[1]:
        raise FormatError(f"{spec['type']}.{key} is {short(value)}, expected a token and its id")
    return value[1]


def _items(spec, key, id_of):
    value, special = spec.get(key), spec.get("special_tokens")
    where = f"TemplateProcessing.{key}"
    if not isinstance(value, list) or not isinstance(special, dict) or len(value) > 1000:
        raise FormatError(f"{where} is {short(value)} and special_tokens is {short(special)}, expected a list and an object")
    found = []
    for item in value:
        (kind, body), = item.items() if isinstance(item, dict) and len(item) == 1 else [(None, None)]
        type_id = body.get("type_id", 0) if isinstance(body, dict) else None
        if type(type_id) is not int or not 0 <= type_id < 1 << 31:
            raise FormatError(f"{where} holds {short(item)}, expected Sequence or SpecialToken with id and type_id")
        if kind == "Sequence" and body.get("id") in (TEXT_A, TEXT_B):
            found.append((body["id"], type_id))
            continue
        token = special.get(body.get("id")) if kind == "SpecialToken" and isinstance(body.get("id"), str) else None
        ids = token.get("ids") if isinstance(token, dict) else None
        tokens = token.get("tokens") if isinstance(token, dict) else None
        if not isinstance(ids, list) or not isinstance(tokens, list) or len(ids) != len(tokens) or len(ids) > 64 or any(
                type(i) is not int or not isinstance(t, str) or id_of(t) != i for i, t in zip(ids, tokens)):
            raise FormatError(f"{where} holds {short(item)}, which special_tokens gives as {short(token)}; expected tokens of the "
                              "vocabulary with their ids")
        found += [(i, type_id) for i in ids]
    texts = [what for what, _ in found if not isinstance(what, int)]
    if sorted(texts) != ([TEXT_A] if key == "single" else [TEXT_A, TEXT_B]):
        raise FormatError(f"{where} is {short(value)}, expected each text once")
    return tuple(found)


def around(before, after, tokens, sep=False):
    """Tokens before and after a text, or None -> a post-processor; sep: a second text is followed by `after`, as type 1."""
    if before is None and after is None:
        return None

    def token(content, kind=0):
        return [{"SpecialToken": {"id": content, "type_id": kind}}] if content is not None else []

    single = [*token(before), {"Sequence": {"id": "A", "type_id": 0}}, *token(after)]
    second = [*([] if sep else token(before, 1)), {"Sequence": {"id": "B", "type_id": 1}}, *token(after, 1)]
    special = {content: {"id": content, "ids": [tokens.index(content)], "tokens": [content]} for content in (before, after) if content}
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, *second], "special_tokens": special}
