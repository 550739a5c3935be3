"""JSON schemas that answers must follow, and forms that are refused, by what they are about."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema

NODE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "value": {"type": "boolean"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}

SCHEMAS: dict[str, Any] = {
    "anything": True,
    "types": {"type": ["boolean", "null", "integer"]},
    "const": {"const": {"a": [1, "é\n", None]}},
    "enum": {"enum": ["a", 1.5, None, [True]]},
    "bounds": {"type": "integer", "exclusiveMinimum": -3, "maximum": 1000},
    "numbers": {"type": "number", "minimum": 0.25, "exclusiveMaximum": 7.5},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z][a-z]{1,4}$"},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    "prefix": {"type": "array", "prefixItems": [{"type": "null"}, {"enum": ["x"]}], "items": False, "minItems": 2},
    "optional": {"properties": {"a": {"type": "null"}, "b": {"enum": [1]}}, "additionalProperties": False},
    "required": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a", "b"]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 5}, {"maximum": 50}]},
    "list": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "keyword": ({"json": {"type": "array", "uniqueItems": True}}, 'Unimplemented keys: ["uniqueItems"]'),
    "type": ({"json": {"type": "objekt"}}, "Invalid type: objekt"),
    "text": ({"json": "{"}, "EOF while parsing"),
    "unsatisfiable": ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "Unsatisfiable"),
    "false": ({"json": False}, "allows no answer"),
    "missing reference": ({"json": {"$ref": "#/$defs/none"}}, "none"),
    "endless reference": ({"json": {"$ref": "#"}}, "no text follows"),
    "regex": ({"regex": "(("}, "unclosed group"),
    "lookahead": ({"regex": "(?=a)b"}, "look-around"),
    "grammar": ({"grammar": "start: ("}, "Expected"),
    "gbnf": ({"grammar": "root ::= ("}, ""),
    "left recursion": ({"grammar": "start: start start"}, "no text follows"),
    "long": ({"regex": "a" * 300_000}, "256 KiB"),
}
"""A form of `structured_outputs`, and what its error says."""

HOSTILE: dict[str, dict[str, Any]] = {
    "multiple": {"json": {"type": "integer", "multipleOf": 1000003}},
    "many properties": {"json": {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(9000)}}},
    "patterns": {
        "json": {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{n}}}$"} for n in range(20)]}
    },
    "alternatives": {
        "json": {
            "allOf": [
                {"oneOf": [{"properties": {f"p{n}": {"const": m}}, "required": [f"p{n}"]} for m in range(3)]}
                for n in range(10)
            ]
        }
    },
    "large enum": {"json": {"enum": [f"value{n}" for n in range(20_000)]}},
    "optional regex": {"regex": "(a|b|c)?" * 5000},
    "repeated regex": {"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"},
    "states": {"regex": "(a|b)*a(a|b){2000}"},
    "words": {"regex": r"(\w{100}\W{100}){1000}"},
    "references": {
        "json": {
            "$ref": "#/$defs/d0",
            "$defs": {"d40": {"type": "object"}}
            | {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
        }
    },
    "ambiguous": {"grammar": 'start: s\ns: s s | s s s | "a" | ""'},
    "many rules": {"grammar": "start: r0\n" + "".join(f'r{n}: "a" r{n + 1}\n' for n in range(4000)) + 'r4000: "x"'},
    "brackets": {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "deep text": {"json": '{"items":' * 20_000 + "true" + "}" * 20_000},
}  # fmt: skip
"""Forms of `structured_outputs` that take long, or would without limits."""


def check_answer(text: str, schema: Any) -> None:
    """Fails for a text that is no JSON of the schema, formats included."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


def random_schema(draw: random.Random, depth: int = 3) -> Any:
    """A schema of the kinds that JSON-Schema-Test-Suite has. Some contradict themselves, or are not supported.

    It may refer to `#/$defs/node`, which is `NODE`.
    """
    leaves = [_integer, _number, _string, _constant, _named]
    nested = [_array, _object, _combined]
    if depth == 0 or draw.random() < 0.4:
        return draw.choice(leaves)(draw)
    return draw.choice(nested)(draw, depth - 1)


def _named(draw: random.Random) -> Any:
    return draw.choice([{"type": "boolean"}, {"type": ["null", "boolean"]}, {"$ref": "#/$defs/node"}])


def _integer(draw: random.Random) -> Any:
    least = draw.randint(-2000, 1000)
    bounds = {"minimum": least, "exclusiveMinimum": least, "maximum": least + draw.randint(-1, 3000)}
    return {"type": "integer", **_some(draw, {**bounds, "multipleOf": draw.choice([1, 2, 5, 7])})}


def _number(draw: random.Random) -> Any:
    least = round(draw.uniform(-10, 10), draw.randint(0, 4))
    return {
        "type": "number",
        **_some(draw, {"minimum": least, "exclusiveMaximum": least + draw.randint(1, 9)}),
    }


def _string(draw: random.Random) -> Any:
    formats = [
        "date",
        "time",
        "date-time",
        "uuid",
        "ipv4",
        "ipv6",
        "email",
        "hostname",
        "duration",
        "unknown",
    ]
    patterns = ["^a+$", "[0-9]{2}", "^(cat|dog)s?$", r"^\d{3}-\w+$", "^[^a]*$", "x", "^.{2,4}$"]
    shortest = draw.randint(0, 5)
    lengths = _some(draw, {"minLength": shortest, "maxLength": shortest + draw.randint(0, 10)})
    others = [lengths, {"format": draw.choice(formats)}, {"pattern": draw.choice(patterns)}]
    return {"type": "string", **draw.choice(others)}


def _constant(draw: random.Random) -> Any:
    values = [1, -1.5, "a", 'é\n"', None, True, [], [1, {"a": 2}], {"b": [None]}, "🜚"]
    return draw.choice([{"const": draw.choice(values)}, {"enum": draw.sample(values, draw.randint(1, 5))}])


def _array(draw: random.Random, depth: int) -> Any:
    least = draw.randint(0, 2)
    fields = {
        "prefixItems": [random_schema(draw, depth) for _ in range(draw.randint(1, 2))],
        "minItems": least,
        "maxItems": least + draw.randint(0, 3),
        "uniqueItems": True,
    }
    return {"type": "array", "items": random_schema(draw, depth), **_some(draw, fields)}


def _object(draw: random.Random, depth: int) -> Any:
    names = draw.sample(["a", "b b", "ç", "long_name", "$ref?", '"'], draw.randint(1, 4))
    fields = {
        "required": draw.sample(names, draw.randint(0, len(names))),
        "additionalProperties": draw.choice([False, True, {"type": "integer"}]),
        "patternProperties": {"^x_": random_schema(draw, 0)},
        "minProperties": 1,
    }
    return {
        "type": "object",
        "properties": {name: random_schema(draw, depth) for name in names},
        **_some(draw, fields),
    }


def _combined(draw: random.Random, depth: int) -> Any:
    parts = [random_schema(draw, depth) for _ in range(draw.randint(1, 3))]
    return {draw.choice(["anyOf", "anyOf", "oneOf", "allOf"]): parts}


def _some(draw: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if draw.random() < 0.5}
