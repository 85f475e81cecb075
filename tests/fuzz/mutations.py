"""Damage to bytes and to nested values, as another process, a bad disk or an attacker might do it."""

import json
import math

DEEP = "[" * 3000
PIECES = (b"\x00", b"\xff\xff", b'"', b"[", b"}", b"\n", b"9" * 400, DEEP.encode())
NUMBERS = (
    0, -1, 1, 2, 3.5, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400, math.nan,
    math.inf, -math.inf,
)  # fmt: skip
TEXTS = ("", "x", "nan", "\x00", "\x1b]0;t\x07", "\ud800", "é", "../../etc/passwd", "/dev/zero", "=1+1", "x" * 5000)
OTHERS = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None] * 40,
    {"": {}},
    {"__array__": "a0"},
    {"is": "x"},
    [0, 1],
    ["steps", 5],
)
VALUES = (*NUMBERS, *TEXTS, *OTHERS)


def damage_bytes(random, content):
    """Some bytes changed, cut, doubled or put in."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        at, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
        end = min(end, at + random.choice((1, 4, 30, 1000)))
        match random.randrange(6):
            case 0:
                content[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del content[at:end]
            case 2:
                content[at:at] = content[at:end]
            case 3:
                content[at:at] = random.choice(PIECES)
            case 4:
                content = content[: max(1, at)]
            case 5:
                content[at:end] = bytes(random.randrange(256) for _ in range(end - at))
    return bytes(content)


def places(value, at=()):
    """The paths of all values in a nest of dicts and lists."""
    yield at
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*at, name))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from places(item, (*at, number))


def damage_value(random, value, *, values=VALUES):
    """A copy of a nest in which one or two values are others, are gone, or change places."""
    for _ in range(random.choice((1, 1, 2))):
        at = random.choice(list(places(value)))
        value = _changed(random, value, at, values) if at else value
    return value


def _changed(random, value, at, values):
    first, *rest = at
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[first] = _changed(random, copy[first], rest, values)
        return copy
    match random.randrange(8):
        case 0:
            del copy[first]
        case 1 if isinstance(copy, list):
            copy[first:first] = [copy[first]] * random.choice((1, 3, 100))
        case 2:
            copy[first] = copy[random.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))]
        case 3 if isinstance(copy, dict):
            copy[random.choice(TEXTS)] = copy.pop(first)
        case _:
            copy[first] = random.choice(values)
    return copy


def as_text(value):
    """A nest as JSON, with what is no JSON left as Python writes it."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
