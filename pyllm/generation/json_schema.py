"""JSON Schema as a regular expression's node: the texts that are JSON and of the schema, written with at most one blank behind , and :.

Supported: type (one or several), properties, required, additionalProperties (a schema, of objects without properties), items,
prefixItems, minItems, maxItems, minLength, maxLength, pattern, format (date, time, date-time, uuid), minimum and maximum of integers, enum,
const, anyOf, oneOf (as anyOf), $ref inside the document; one inside of itself is followed five levels deep, or fewer where that makes too
much: such texts are of the schema, deeper ones do not come. Properties come in the schema's order, others than those named never.
Annotations (title, description, default ...) are passed over, any other keyword is a ConfigError: nothing is silently not enforced.
"""
import json

from pyllm.errors import ConfigError, suggest
from pyllm.generation.regex import EMPTY, LAST, alt, cat, chars, literal, parse, repeat, without

ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated",
               "readOnly", "writeOnly", "$anchor", "discriminator"}
KEYWORDS = {  # type -> the keywords that say something about it
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum"), "number": (), "boolean": (), "null": (),
}
EVERY = ("type", "enum", "const", "anyOf", "oneOf", "$ref", *(word for words in KEYWORDS.values() for word in words))
LEVELS, LARGEST = (5, 4, 3, 2), 150  # of a schema that refers to itself: levels tried; schemas met on the way at most
NOTHING = chars()  # the node that no text matches
DIGITS = 15  # of a number at most: what float64 holds exactly
ESCAPED = (34, 34), (92, 92), (0, 31)  # characters that stand in a JSON string as an escape alone
CHARACTER = alt(chars(*without([(0, LAST)], ESCAPED)), parse(r'\\["\\/bfnrt]'),
                parse(r"\\u([0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"))
FORMATS = {"date": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])",  # days that every month has
           "time": r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)",
           "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"}
FORMATS["date-time"] = FORMATS["date"] + "T" + FORMATS["time"]
NUMBER = parse(rf"-?(0|[1-9]\d{{0,{DIGITS - 1}}})(\.\d{{1,{DIGITS}}})?([eE][+-]?\d{{1,2}})?")
BLANK = parse("[ ]?")
COMMA, COLON, QUOTE = cat(literal(","), BLANK), cat(literal(":"), BLANK), literal('"')


def schema_node(schema):
    """schema: a dict as JSON holds it, or its text -> the node of the texts that it allows. ConfigError names what is wrong and where."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ConfigError(f"JSON schema: not JSON: {error}") from None
    for levels in LEVELS:
        reader = _Schema(schema, levels)
        node = _pruned(reader.node(schema, "#", ()))
        if reader.made <= LARGEST or not reader.recursive:
            break
    if node == NOTHING:
        raise ConfigError("JSON schema: it refers to itself wherever it could end: no text is of it")
    return node


class _Schema:
    """levels: how often a $ref may stand inside of itself: a regular language has no other depth. Below that no text is left."""

    def __init__(self, root, levels):
        self.root, self.levels, self.made, self.recursive = root, levels, 0, False

    def node(self, schema, where, inside):
        """inside: the $refs on the way here."""
        self.made += 1
        if self.made > LARGEST and self.recursive and self.levels > LEVELS[-1]:
            return NOTHING  # what is made is made again with fewer levels
        if not isinstance(schema, dict):
            raise ConfigError(f"JSON schema: {where}: {schema!r:.60}; expected an object that says what is allowed")
        said = schema.keys() - ANNOTATIONS
        self._only(said, EVERY, where)
        for keyword, make in {"$ref": self._ref, "const": self._const, "enum": self._enum, "anyOf": self._any, "oneOf": self._any}.items():
            if keyword in said:
                self._only(said, (keyword, "type"), where)
                return make(schema[keyword], f"{where}/{keyword}", inside)
        kinds = schema.get("type", next((kind for kind, words in KEYWORDS.items() if said & {*words}), None))
        kinds = kinds if isinstance(kinds, list) else [kinds]
        for kind in kinds:
            if kind not in KEYWORDS:
                raise ConfigError(f"JSON schema: {where}: type {kind!r}; expected one of {', '.join(KEYWORDS)}")
        self._only(said, ("type", *(word for kind in kinds for word in KEYWORDS[kind])), where)
        nodes = [getattr(self, f"_{kind}")(schema, where, inside) for kind in kinds]
        return nodes[0] if len(nodes) == 1 else alt(*nodes)

    def _only(self, said, known, where):
        if wrong := sorted(said - {*known}):
            raise ConfigError(f"JSON schema: {where}: {wrong[0]!r} is not supported here.{suggest(wrong[0], EVERY)} "
                              f"Supported: {', '.join(known)}")

    def _ref(self, target, where, inside):
        if target in inside:
            self.recursive = True
            if inside.count(target) >= self.levels:
                return NOTHING
        found = self.root
        for part in target.removeprefix("#").strip("/").split("/") if isinstance(target, str) and target.startswith("#/") else [None]:
            part = part and part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or part not in found:
                raise ConfigError(f"JSON schema: {where}: {target!r} leads nowhere; expected #/$defs/NAME")
            found = found[part]
        return self.node(found, target, (*inside, target))

    def _const(self, value, where, inside):
        return literal(json.dumps(value, ensure_ascii=False))

    def _enum(self, values, where, inside):
        _listed(values, where)
        return alt(*(literal(json.dumps(value, ensure_ascii=False)) for value in values))

    def _any(self, schemas, where, inside):
        _listed(schemas, where)
        return alt(*(self.node(schema, f"{where}/{i}", inside) for i, schema in enumerate(schemas)))

    def _boolean(self, schema, where, inside):
        return alt(literal("true"), literal("false"))

    def _null(self, schema, where, inside):
        return literal("null")

    def _number(self, schema, where, inside):
        return NUMBER

    def _integer(self, schema, where, inside):
        low, high = (_whole(schema, key, where, None) for key in ("minimum", "maximum"))
        most = 10**DIGITS - 1
        low, high = -most if low is None else low, most if high is None else high
        if low > high:
            raise ConfigError(f"JSON schema: {where}: minimum {low} is above maximum {high}")
        parts = [whole_numbers(max(low, 0), high)] if high >= 0 else []
        if low < 0:
            parts.append(cat(literal("-"), whole_numbers(max(1, -high), -low)))
        return alt(*parts)

    def _string(self, schema, where, inside):
        if schema.get("format") is not None and schema["format"] not in FORMATS:
            raise ConfigError(f"JSON schema: {where}: format {schema['format']!r}; expected one of {', '.join(FORMATS)}, or a pattern")
        pattern = FORMATS[schema["format"]] if "format" in schema else schema.get("pattern")
        least, most = _counts(schema, "minLength", "maxLength", where)
        if pattern is None:
            return cat(QUOTE, repeat(CHARACTER, least, most), QUOTE)
        if "minLength" in schema or "maxLength" in schema:
            raise ConfigError(f"JSON schema: {where}: pattern or format beside minLength or maxLength. Hint: write the length as {{m,n}}")
        return cat(QUOTE, _unescaped(parse(pattern, search="format" not in schema)), QUOTE)

    def _array(self, schema, where, inside):
        least, most = _counts(schema, "minItems", "maxItems", where)
        items = [self.node(s, f"{where}/prefixItems/{i}", inside) for i, s in enumerate(schema.get("prefixItems", ()))]
        if items:
            if schema.get("items", False) is not False or least not in (0, len(items)) or most not in (None, len(items)):
                raise ConfigError(f"JSON schema: {where}: prefixItems with other items or counts; expected these items alone")
            return cat(literal("["), *[part for item in items for part in (COMMA, item)][1:], literal("]"))
        if "items" not in schema:
            raise ConfigError(f"JSON schema: {where}: an array without items; expected what they are")
        item = self.node(schema["items"], f"{where}/items", inside)
        return _many(item, least, most, "[", "]")

    def _object(self, schema, where, inside):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", False)
        required = schema.get("required", [])
        if not properties and isinstance(more, dict):
            one = cat(QUOTE, repeat(CHARACTER, 0), QUOTE, COLON, self.node(more, f"{where}/additionalProperties", inside))
            return _many(one, 0, None, "{", "}")
        if not isinstance(properties, dict) or not properties or any(name not in properties for name in required):
            missing = [name for name in required if name not in properties]
            raise ConfigError(f"JSON schema: {where}: " + (f"required {missing[0]!r} is not among the properties" if properties else
                              "an object without properties; expected them, or additionalProperties with a schema"))
        pairs = [(cat(literal(json.dumps(name, ensure_ascii=False)), COLON, self.node(value, f"{where}/properties/{name}", inside)),
                  name in required) for name, value in properties.items()]
        anchor = next((i for i, (_, needed) in enumerate(pairs) if needed), None)

        def after(begin):
            return [repeat(cat(COMMA, pair), int(needed), 1) for pair, needed in pairs[begin:]]

        if anchor is None:  # each may be the first, or there is none
            inner = alt(EMPTY, *(cat(pair, *after(i + 1)) for i, (pair, _) in enumerate(pairs)))
        else:
            inner = cat(*(repeat(cat(pair, COMMA), 0, 1) for pair, _ in pairs[:anchor]), pairs[anchor][0], *after(anchor + 1))
        return cat(literal("{"), inner, literal("}"))


def _pruned(node):
    """-> the node without the branches that no text takes; NOTHING where none is left."""
    kind, what, *counts = node
    if kind == "set" or not what:
        return node
    if kind == "repeat":
        inner = _pruned(what)
        return (kind, inner, *counts) if inner != NOTHING else NOTHING if counts[0] else EMPTY
    parts = tuple(map(_pruned, what))
    if kind == "cat":
        return NOTHING if NOTHING in parts else (kind, parts)
    parts = tuple(part for part in parts if part != NOTHING)
    return (kind, parts) if parts else NOTHING


def _many(node, least, most, begin, end):
    """-> `least` to `most` times the node, with commas, in brackets."""
    if most == 0:
        return literal(begin + end)
    some = cat(node, repeat(cat(COMMA, node), max(least - 1, 0), None if most is None else most - 1))
    return cat(literal(begin), some if least else alt(EMPTY, some), literal(end))


def _listed(values, where):
    if not isinstance(values, list) or not values:
        raise ConfigError(f"JSON schema: {where}: {values!r:.60}; expected a list, not empty")


def _whole(schema, key, where, default):
    value = schema.get(key, default)
    if value is not default and (isinstance(value, bool) or value != int(value) or abs(value) >= 10**DIGITS):
        raise ConfigError(f"JSON schema: {where}: {key} {value!r}; expected a whole number of at most {DIGITS} digits")
    return value if value is None else int(value)


def _counts(schema, low, high, where):
    """-> least, most or None."""
    least, most = _whole(schema, low, where, 0), _whole(schema, high, where, None)
    if least < 0 or most is not None and most < least:
        raise ConfigError(f"JSON schema: {where}: {low} {least}, {high} {most}; expected 0 <= {low} <= {high}")
    return least, most


def _unescaped(node):
    """-> the node without the characters that JSON writes as escapes."""
    kind, what, *counts = node
    if kind == "set":
        return "set", tuple(without(what, ESCAPED))
    if kind == "repeat":
        return "repeat", _unescaped(what), *counts
    return kind, tuple(map(_unescaped, what))


def whole_numbers(low, high):
    """0 <= low <= high -> the node of the decimal numbers from the one to the other."""
    nodes = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        nodes.append(_digits(str(first), str(last)))
    return alt(*nodes)


def _digits(low, high):
    """Two numbers of as many digits -> the node of those between."""
    if not low:
        return EMPTY
    a, b, rest = ord(low[0]), ord(high[0]), len(low) - 1
    free = repeat(chars((48, 57)), rest, rest)
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return cat(chars((a, b)), free)
    if a == b:
        return cat(chars((a, a)), _digits(low[1:], high[1:]))
    nodes = [cat(chars((a, a)), _digits(low[1:], "9" * rest)), cat(chars((b, b)), _digits("0" * rest, high[1:]))]
    if b - a > 1:
        nodes.append(cat(chars((a + 1, b - 1)), free))
    return alt(*nodes)
