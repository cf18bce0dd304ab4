"""Parsing the text of an untrusted TOML, JSON or YAML file, with limits on its size and depth."""

import json
import re
import sys
from typing import Any

import yaml

from ..basics.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

SUBJECT = "The recipe"
LARGEST = 1_000_000
"""bytes"""
DEEPEST = 12
"""most levels of nested tables and lists"""
MOST = 10_000
"""most values, tables and lists in all"""
LIKE_TOML = re.compile(r"^[ \t]*(\[|[\w.\"'-]+[ \t]*=)", re.MULTILINE)
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is there: it is many times faster"""
NULLS = ("", "~", "null", "Null", "NULL")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The content of a TOML, JSON or YAML file; the format is recognised by the text.

    Returns:
        ("TOML", "JSON" or "YAML", the top-level table).

    Raises:
        InputError: too large, too deep, in none of the formats, or with a duplicate key.
    """
    if len(text) > LARGEST or len(text.encode("utf-8", "surrogatepass")) > LARGEST:
        raise _refused(f"it is larger than {LARGEST:,} bytes, far more than any recipe; choose another file.")
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        raise _refused("it holds bytes that no text has; choose a TOML, JSON or YAML file.")
    if text.lstrip().startswith("{"):
        kind, content = "JSON", _json(text)
    else:
        kind, content = _toml_or_yaml(text)
    if not isinstance(content, dict):
        raise _refused(f"its {kind} holds no table of keys at the top; it must be a recipe's settings.")
    _check_bounds(content)
    return kind, content


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_bounded_int)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _refused(f"it begins like JSON, but is none: {error}.") from None


def _toml_or_yaml(text: str) -> tuple[str, Any]:
    if any(line.split("=", 1)[0].count(".") > 10 * DEEPEST for line in text.splitlines()):
        raise _too_deep()  # parsing a dotted key takes time in the square of its length
    try:
        return "TOML", tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        if text.lstrip().startswith("["):
            _refuse_list(text)
        if LIKE_TOML.search(text) and not re.search(r"^\w+:", text, re.MULTILINE):
            raise _refused(f"it looks like TOML, but is none: {error}.") from None
    try:
        return "YAML", _yaml(text)
    except UnicodeError:
        raise _refused("it holds characters that no text has; save it as UTF-8.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        problem = getattr(error, "problem", None) or "no text of that form"
        if "nesting depth" in problem:  # libyaml's own limit
            raise _too_deep() from None
        raise _refused(f"it is neither TOML, JSON nor YAML: {problem}{line}.") from None


def _refuse_list(text: str) -> None:
    """Refuses a JSON list, which begins as a TOML table does."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return
    raise _refused(
        f"it is a JSON list of {len(content):,}, no table of keys, as OneTrainer's concepts and SimpleTuner's data "
        "backends are: choose the file with the training's settings."
    )


def _yaml(text: str) -> Any:
    """Reads one document by its events, without aliases (which can expand without bound) and tags."""
    outer: list[list[Any]] = [[]]
    count = documents = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise _refused("it holds several YAML documents (---): leave one.")
        if isinstance(event, yaml.CollectionEndEvent):
            inner = outer.pop()
            is_table = isinstance(event, yaml.MappingEndEvent)
            outer[-1].append(_once(list(zip(map(str, inner[::2]), inner[1::2], strict=True))) if is_table else inner)
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            _check_node(event, len(outer), count)
            if isinstance(event, yaml.ScalarEvent):
                outer[-1].append(_scalar(event))
            else:
                outer.append([])
    return outer[0][0] if outer[0] else None


def _check_node(event: Any, depth: int, count: int) -> None:
    if isinstance(event, yaml.AliasEvent):
        raise _refused("it uses YAML aliases (*name), which are not read: write the values out.")
    if event.anchor is not None:
        raise _refused("it uses YAML anchors (&name), which are not read: write the values out.")
    if event.tag is not None:
        raise _refused(f"it uses the YAML tag {event.tag!r:.60}; tags are not read: write plain values.")
    if depth > DEEPEST:
        raise _too_deep()
    if count > 2 * MOST:
        raise _too_many()


def _scalar(event: Any) -> Any:
    """Converts text by YAML 1.2's core schema, in which 1e-4 is a number and `no` is text."""
    text = event.value
    if event.style:  # quoted or block text
        return text
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if re.fullmatch(r"[-+]?\d+", text):
        return _bounded_int(text)
    if re.fullmatch(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", text):
        return float(text)
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _refused(f"its key {twice[:60]!r} stands twice; leave one of the two.")
    return table


def _bounded_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)


def _check_bounds(content: Any) -> None:
    """Refuses content that is too deep or too large; works level by level, without recursion."""
    level, count = [content], 0
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
        count += len(level)
        if count > MOST:
            raise _too_many()
        if not level:
            return
    raise _too_deep()


def _refused(problem: str) -> InputError:
    return InputError(SUBJECT, [problem])


def _too_deep() -> InputError:
    return _refused(f"it is nested deeper than {DEEPEST} levels, which no recipe is; choose another file.")


def _too_many() -> InputError:
    return _refused(f"it holds more than {MOST:,} values, which no recipe does; choose another file.")
