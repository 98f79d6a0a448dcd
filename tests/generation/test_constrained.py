"""Constraints: expressions against Python's re, schemas against json, and what models draw against both."""
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.errors import ConfigError
from pyllm.folders import build
from pyllm.generation import Constraint, generate, stream
from pyllm.generation.regex import byte_sequences, compile, parse
from pyllm.text import ByteLevelBPE, CharTokenizer

PATTERNS = [
    r"a*b|c", r"[a-c]{2,4}x?", r"(?:ab|cd)+\d{2}", r"[^a-z]", r"é+|[À-ÿ]{1,2}", r'"[^"\\]*"', r"\w+@\w+\.com", r"(a|b)*abb", "", r"x{0}",
    r".{0,3}", r"^ab$", r"\x41\u00e9", r"[\d\-x]+?", r"[]a]+", r"[^]a]", r"a{,2}b{2,}", r"(?P<n>a|)b", r"[🙂-🙄]东?", r"a{b}",
    r"\S\s\W\D",
]
TEXTS = ["", "a", "ab", "b", "aab", "c", "abx", "abcdx", "ab12", "cdab99", "ababb", "É", "ÿé", "é", '"a"', '"東京"', "a_b@c.com", "ab\n",
         "Aé", "東京🙂", "\n", "1-x", "]a]", "aabbb", "🙂东", "🙄", "a{b}", "x \tz", "x -z", "\x00", "bb"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_expressions_match_what_python_matches(pattern):
    constraint = Constraint.regex(pattern)
    for text in TEXTS:
        assert constraint.matches(text) == bool(re.fullmatch(pattern, text, re.ASCII)), text


def expressions():
    leaf = st.sampled_from(["a", "b", "é", "[ab]", "[^a]", ".", r"\d", "🙂", "1"])
    return st.recursive(leaf, lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join), st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}"])).map("(?:{0[0]}){0[1]}".format)), max_leaves=8)


@settings(max_examples=150)
@given(expressions(), st.lists(st.text("ab1é🙂\n", max_size=7), min_size=5, max_size=5))
def test_any_expression_matches_what_python_matches(pattern, texts):
    constraint, automaton = Constraint.regex(pattern), compile(parse(pattern))
    for text in texts:
        assert constraint.matches(text) == bool(re.fullmatch(pattern, text, re.ASCII)), text
    assert automaton.distance[1] <= max((len(t.encode()) for t in texts if constraint.matches(t)), default=1 << 20)


@given(st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF)).map(sorted), max_size=3), st.integers(0, 0x10FFFF))
def test_byte_ranges_are_the_characters(ranges, code):
    if 0xD800 <= code < 0xE000:
        return
    data = chr(code).encode()
    found = any(len(s) == len(data) and all(low <= byte <= high for byte, (low, high) in zip(data, s)) for s in byte_sequences(ranges))
    assert found == any(low <= code <= high for low, high in ranges)


@pytest.mark.parametrize("pattern,words", [
    ("a(b", r"a \( without its \) at 3"), ("a)b", r"a \) without its \( at 1"), ("*a", r"\* behind nothing"),
    (r"(?=a)b", r"\(\?\.\.\.\) that is"),
    (r"(a)\1", r"\\1, which is not supported"), (r"\bword", r"\\b, which is not supported"), ("[a", "the end, where something is missing"),
    ("[z-a]", "a range that is none"), ("a{3,2}", "not least,most"), ("a++", "possessive"), ("a^b", r"\^ inside"),
    (r"\xZZ", "no character"),
    (r"[^\x00-\U0010ffff]", "matches no text"), ("(" * 150 + ")" * 150, "a group inside of 100"), (3, "a int; expected a str"),
    ("(a{1000}){1000}", "too large|more than"), ("(a|b)*a(a|b){16}", "more than 50000 states"),
])
def test_what_is_not_regular_is_named(pattern, words):
    with pytest.raises(ConfigError, match=words):
        Constraint.regex(pattern)


# ---- what models draw -------------------------------------------------------------------------------------------------------

SAMPLE = 'the cat sat, {"name": "Ada", "age": 36} [1, 2.5, null, true] on the mat; naïve café 東京 🙂 ' * 4
TOKENIZERS = {
    "bpe": ByteLevelBPE.train([SAMPLE], 400),
    "bytes": ByteLevelBPE.train([SAMPLE], 257),
    "chars": CharTokenizer.train([bytes(range(32, 127)).decode() + "éï東京🙂\n"]),
}


def model_for(tokenizer, end=None):
    model = build(dict(model_type="llama", vocab_size=tokenizer.vocab_size + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=512, eos_token_id=end), seed=1)
    for p in model.parameters():
        p.data *= 3
    return model


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("pattern", [r"(yes|no)", r"\d{4}-\d\d-\d\d", r"[A-Z][a-z]{2,10}( [A-Z][a-z]{2,10}){1,3}\.", "(東京|café){2}🙂",
                                     "[ab]*"])
def test_what_is_drawn_matches(name, pattern):
    tokenizer, constraint = TOKENIZERS[name], Constraint.regex(pattern)
    for end in (None, 0):
        model = model_for(tokenizer, end)
        results = generate(model, tokenizer, ["the", "cat sat on the"] * 3, max_tokens=60, temperature=1.5, constraint=constraint)
        for g in results:
            assert re.fullmatch(pattern, g.text, re.ASCII), g.text
        assert len({g.text for g in results}) > 1
        pieces = stream(model, tokenizer, "the", max_tokens=60, temperature=1.5, constraint=constraint)
        assert "".join(pieces) == results[0].text


def test_greedy_takes_the_likeliest_allowed_and_rows_are_alone():
    tokenizer, constraint = TOKENIZERS["bpe"], Constraint.regex(r"(cat|dog)s?( the)?")
    model = model_for(tokenizer)
    options = dict(max_tokens=20, temperature=0, constraint=constraint)
    together = generate(model, tokenizer, ["the", "mat", "a cat"], **options)
    assert [g.text for g in together] == [generate(model, tokenizer, p, **options).text for p in ("the", "mat", "a cat")]
    best = generate(model, tokenizer, "the", max_tokens=20, num_beams=8, num_return_sequences=4, constraint=constraint)
    assert all(re.fullmatch(r"(cat|dog)s?( the)?", g.text) for g in best)


def test_little_room_leads_to_an_end_in_time():
    tokenizer = TOKENIZERS["bytes"]
    model, constraint = model_for(tokenizer), Constraint.regex(r'\{"words": \[("[a-z]*"(, "[a-z]*")*)?\]\}')
    for limit in (13, 14, 17, 40):  # 13 bytes: {"words": []}
        for g in generate(model, tokenizer, ["a", "b", "c"], max_tokens=limit, temperature=2.0, constraint=constraint):
            assert isinstance(json.loads(g.text)["words"], list) and len(g.ids) <= limit
    cut = generate(model, tokenizer, "a", max_tokens=8, constraint=constraint)
    assert cut.finish_reason == "length" and len(cut.ids) == 8 and '{"words": []}'.startswith(cut.text)


def test_special_tokens_are_no_text():
    tokenizer = TOKENIZERS["bpe"]
    model = model_for(tokenizer)
    assert tokenizer.added and tokenizer.added[0].special
    text = generate(model, tokenizer, "a", max_tokens=50, temperature=3.0, constraint=Constraint.regex(r"[^\n]{40,50}")).text
    assert all(t.content not in text for t in tokenizer.added)


def test_masks_are_the_tokens_that_can_go_on():
    """By definition: a token is allowed where some text goes on through it."""
    tokenizer, pattern = TOKENIZERS["bpe"], "the (cat|mat)+!?"
    constraint = Constraint.regex(pattern)
    matcher, state, text = constraint.over(tokenizer, {0}), -1, ""
    language = [f"the {''.join(words)}{end}" for n in range(1, 5) for words in np.array(np.meshgrid(*[["cat", "mat"]] * n)).reshape(n, -1).T
                for end in ("", "!")]
    for id in tokenizer.encode("the catmat"):
        mask = matcher.allowed(state, 1000)
        want = {i for i in range(1, tokenizer.vocab_size) if (t := tokenizer.decode([i])) and any(s.startswith(text + t) for s in language)}
        assert {*np.flatnonzero(mask).tolist()} - {0} == want and bool(mask[0]) == (text in language)
        text, state = text + tokenizer.decode([id]), matcher.after(state, id)


def test_what_the_vocabulary_cannot_spell_is_said():
    tokenizer = CharTokenizer.train(["abc"])
    with pytest.raises(ValueError, match="after 1 tokens every token is forbidden.*constraint that the vocabulary can spell"):
        generate(model_for(tokenizer), tokenizer, "a", constraint=Constraint.regex("ax"))
    with pytest.raises(ValueError, match="a constraint without a tokenizer"):
        generate(model_for(tokenizer), None, [1], constraint=Constraint.regex("ax"))


# ---- schemas ----------------------------------------------------------------------------------------------------------------

SCHEMAS = {
    "person": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0,
               "maximum": 130}, "tags": {"type": "array", "items": {"enum": ["a", "b\n", "ü"]}, "maxItems": 3},
               "alive": {"type": "boolean"}}, "required": ["name", "alive"], "additionalProperties": False},
    "all-optional": {"properties": {"x": {"type": "number"}, "y": {"type": ["string", "null"], "maxLength": 3},
                                    "z": {"const": {"k": [1]}}}},
    "first-optional": {"properties": {"x": {"type": "null"}, "y": {"type": "null"}, "z": {"type": "null"}}, "required": ["y"]},
    "ref": {"$defs": {"point": {"type": "array", "prefixItems": [{"type": "integer", "minimum": -5, "maximum": 12}, {"type": "number"}],
            "minItems": 2, "maxItems": 2}}, "type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 3},
    "any-of": {"anyOf": [{"type": "integer", "minimum": 95, "maximum": 1203}, {"type": "string", "pattern": "^[A-Z]{3}-[0-9]+$"},
                         {"type": "string", "format": "date"}]},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "titled": {"title": "T", "description": "d", "type": "string", "minLength": 2, "maxLength": 4},
    "pattern": {"type": "string", "pattern": "a.b"},
}
RIGHT = {
    "person": ['{"name": "Ada", "age": 36, "tags": ["a", "ü"], "alive": true}', '{"name":"","alive":false}',
               '{"name": "\\"", "alive": true}'],
    "all-optional": ["{}", '{"x": -1.5e3}', '{"y": null, "z": {"k": [1]}}', '{"x": 0, "y": "東京🙂"}'],
    "first-optional": ['{"y": null}', '{"x": null, "y": null}', '{"y": null, "z": null}'],
    "ref": ["[[12, 0.5]]", "[[-5, 1], [0, 2]]"], "any-of": ["95", "1203", "100", '"ABC-12"', '"2024-02-28"'],
    "map": ["{}", '{"a": 1, "\\n": -2}'], "titled": ['"ab"', '"\\u00e9x\\\\"'], "pattern": ['"a-b"', '"xxaübyy"'],
}
WRONG = {
    "person": ["{}", '{"alive": true, "name": "x"}', '{"name": "x", "alive": 1}', '{"name": "x", "age": 131, "alive": true}', "null",
               '{"name": "0123456789abc", "alive": true}', '{"name": "x", "alive": true, "more": 1}', '{"name": "\n", "alive": true}'],
    "all-optional": ["[]", '{"x": 01}', '{"x": 1,}', '{, "x": 1}', '{"y": "1234"}', '{"x": NaN}'],
    "first-optional": ["{}", '{"x": null}', '{"y": null, }'], "ref": ["[]", "[[13, 0]]", "[[-6, 0]]", "[[1]]", "[[1,2],[1,2],[1,2],[1,2]]"],
    "any-of": ["94", "1204", "0100", '"ABC-"', '"2024-13-01"', "95.0"], "map": ['{"a": "b"}', '{1: 1}'],
    "titled": ['"a"', '"abcde"', "'ab'"], "pattern": ['"ab"', '"a"b"'],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_allow_what_they_say(name):
    constraint = Constraint.json(SCHEMAS[name])
    for text in RIGHT[name]:
        assert constraint.matches(text), text
        json.loads(text)
    for text in WRONG[name]:
        assert not constraint.matches(text), text
    assert Constraint.json(json.dumps(SCHEMAS[name])).matches(RIGHT[name][0])


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_is_drawn_is_of_the_schema(name, kind):
    jsonschema = pytest.importorskip("jsonschema")
    tokenizer = TOKENIZERS[kind]
    model, constraint = model_for(tokenizer), Constraint.json(SCHEMAS[name])
    texts = [g.text for seed in range(3) for g in generate(model, tokenizer, ["the", "cat", "a mat"], max_tokens=150, temperature=1.5,
                                                            seed=seed * 10, constraint=constraint)]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        assert constraint.matches(text)
    assert len({*texts}) > 2


@given(st.integers(-3000, 3000), st.integers(-3000, 3000), st.integers(-3100, 3100))
def test_ranges_of_whole_numbers(one, other, value):
    low, high = sorted((one, other))
    constraint = Constraint.json({"type": "integer", "minimum": low, "maximum": high})
    assert constraint.matches(str(value)) == (low <= value <= high)
    assert not constraint.matches("-0") and not constraint.matches("00") and constraint.matches(str(low)) and constraint.matches(str(high))


TREE = {"$defs": {"tree": {"properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                           "required": ["name", "children"]}}, "$ref": "#/$defs/tree"}
VALUE = {"$defs": {"value": {"anyOf": [{"type": ["null", "boolean", "integer"]}, {"type": "array", "items": {"$ref": "#/$defs/value"}},
                                       {"type": "object", "additionalProperties": {"$ref": "#/$defs/value"}}]}}, "$ref": "#/$defs/value"}


def nested(depth):
    return {"name": "a", "children": [nested(depth - 1)] * 2 if depth else []}


def test_a_schema_that_refers_to_itself_is_followed_some_levels_deep():
    trees, values = Constraint.json(TREE), Constraint.json(VALUE)
    assert all(trees.matches(json.dumps(nested(depth))) for depth in range(5)) and not trees.matches(json.dumps(nested(5)))
    assert not trees.matches('{"name": "a"}') and not trees.matches('{"name": "a", "children": [{}]}')
    assert values.matches('[1, {"a": [null, true], "b": {}}]') and values.matches("7") and not values.matches("[1, ]")


@pytest.mark.parametrize("schema,words", [
    ({"type": "object"}, "an object without properties"), ({}, "type None; expected one of object"), (True, "True; expected an object"),
    ({"type": "text"}, "type 'text'"),
    ({"type": "string", "maxLenght": 3}, "#: 'maxLenght' is not supported here. Did you mean 'maxLength'"),
    ({"type": "array"}, "an array without items"), ({"$ref": "#/$defs/no"}, "leads nowhere"), ({"enum": []}, "expected a list, not empty"),
    ({"$defs": {"t": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}, "no text is of it"),
    ({"$ref": "#"}, "no text is of it|leads nowhere"),
    ({"properties": {"a": {"type": "null"}}, "required": ["b"]}, "required 'b' is not among"), ("{", "not JSON"),
    ({"properties": {"a": {"properties": {"b": {"not": {}}}}}}, "#/properties/a/properties/b: 'not' is not supported"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum 3 is above"), ({"type": "integer", "minimum": 0.5}, "minimum 0.5"),
    ({"type": "string", "minLength": 4, "maxLength": 3}, "minLength 4, maxLength 3"),
    ({"type": "string", "format": "email"}, "format 'email'"), ({"type": "string", "pattern": "(?!a)b"}, "that is not"),
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "uniqueItems"),
])
def test_schemas_that_cannot_be_kept_to_are_named(schema, words):
    with pytest.raises(ConfigError, match=words):
        Constraint.json(schema)
