"""What pydantic found wrong in a request, as one sentence: what was sent, what may be sent, and the nearest name.

What may be sent is read from the same JSON schema that /openapi.json shows. Texts are not quoted, as they may be
content; only a word that stands where one of a few words must is.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mesh.errors import RequestError, nearest

Schema: TypeAlias = Mapping[str, Any]
Place: TypeAlias = tuple[str | int, ...]

SHOWN: Final = 64  # characters of a name, and names, that an error quotes or looks through
_WORD: Final = 32  # characters of a word that is quoted
_PLURALS: Final = {"string": "texts", "integer": "numbers", "number": "numbers", "array": "lists"}


def explained(error: ValidationError, data: Any, model: type[BaseModel], prefix: str = "") -> RequestError:
    """The first fault as an error for the client.

    Args:
        data: what was validated.
        model: the form that it should have had.
        prefix: what stands before a field's name, like `mesh.`.
    """
    faults = error.errors(include_url=False)
    first = _place(faults[0], data)
    # A union speaks once for each of its forms: the one that came deepest is what was meant.
    fault = max((f for f in faults if _place(f, data)[: len(first)] == first), key=lambda f: len(_place(f, data)))
    place = _place(fault, data)
    path = prefix + written(place)
    forms = list(_forms(_schema(model), _schema(model), place))
    wanted = _any_of(forms) + _meaning(_schema(model), place)
    if fault["type"] in ("missing", "union_tag_not_found"):
        close = _close(place, data)
        return RequestError(f"{path!r} is required{close or f'; give {wanted}.'}", path)
    value = _at(data, place)
    return RequestError(f"{path!r} is {_said(value, forms)}; give {wanted}.{_near(value, forms)}", path)


def written(place: Place) -> str:
    """A place as people write it: `messages[0].role`."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:SHOWN]}" for part in place)
    return shown.removeprefix(".")


def _place(fault: ErrorDetails, data: Any) -> Place:
    """Where in the data the fault is. Pydantic also names the forms of a union on the way: those are left out."""
    place: list[str | int] = []
    at: Any = data
    parts = [part for part in fault["loc"] if part != "[key]"]
    for part in parts:
        if _holds(at, part):
            at = at[part]
            place.append(part)
    if fault["type"] == "missing":
        place.append(parts[-1])
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place.append(str(fault["ctx"]["discriminator"]).strip("'"))
    return tuple(place)


def _holds(at: Any, part: str | int) -> bool:
    return part in at if isinstance(at, dict) else isinstance(at, list) and isinstance(part, int) and part < len(at)


def _at(data: Any, place: Place) -> Any:
    for part in place:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _close(place: Place, data: Any) -> str:
    """'. Did you mean X?', if the object has a field whose name is almost the missing one's."""
    holder = _at(data, place[:-1])
    names = [name for name in list(holder)[:SHOWN] if len(name) <= SHOWN] if isinstance(holder, dict) else []
    hint = nearest(str(place[-1]), names)
    return f".{hint}" if "Did you mean" in hint else ""


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _forms(root: Schema, at: Schema, place: Place) -> Iterator[Schema]:
    """Every form that the value at the place may have, null aside: to leave a field out is the same."""
    if "$ref" in at:
        yield from _forms(root, root["$defs"][at["$ref"].rpartition("/")[2]], place)
    elif choices := at.get("anyOf") or at.get("oneOf"):
        for choice in choices:
            yield from _forms(root, choice, place)
    elif not place:
        if at.get("type") != "null":
            yield at
    elif isinstance(place[0], int):
        yield from _forms(root, at["items"], place[1:]) if "items" in at else ()
    else:
        inner = at.get("properties", {}).get(place[0], at.get("additionalProperties"))
        yield from _forms(root, inner, place[1:]) if isinstance(inner, dict) else ()


def _meaning(root: Schema, place: Place) -> str:
    """What a field of the outermost object is, where there is no leaving it out, or no choice."""
    field = root.get("properties", {}).get(place[0], {}) if len(place) == 1 else {}
    bounds: Schema = next((form for form in field.get("anyOf", ()) if "minimum" in form), {})
    told = place[0] in root.get("required", ()) or bounds.get("minimum", 0) == bounds.get("maximum", 1)
    return f": {field['description']}" if told and "description" in field else ""


def _any_of(forms: Sequence[Schema]) -> str:
    """'a whole number from 1 to 64', 'text or a list of texts', "one of 'a', 'b'"."""
    words = _words(forms)
    if words:
        return f"one of {', '.join(map(repr, words))}" if len(words) > 1 else repr(words[0])
    kinds = {form.get("type") for form in forms}
    told = [form for form in forms if not (form.get("type") == "integer" and "number" in kinds)]
    said = list(dict.fromkeys(map(_form, told))) or ["something else"]
    return " or ".join(said)


def _words(forms: Sequence[Schema]) -> list[str]:
    """The words of which one must stand here, if nothing else may."""
    if not all("enum" in form or "const" in form for form in forms):
        return []
    return [str(word) for form in forms for word in form.get("enum", [form.get("const")])]


def _form(form: Schema) -> str:
    kind = form.get("type")
    if kind in ("integer", "number"):
        if form.get("minimum") == form.get("maximum") is not None:
            return _figure(form["minimum"])
        return ("a whole number" if kind == "integer" else "a number") + _range(form)
    if kind == "string":
        size = _size(form, "Length")
        return "digits like '0.02'" if "pattern" in form else f"text of{size} characters" if size else "text"
    if kind == "array":
        items = _PLURALS.get(form.get("items", {}).get("type"), "objects")
        return f"a list of{_size(form, 'Items') or ''} {items}"
    size = _size(form, "Properties")
    return "true or false" if kind == "boolean" else f"an object of{size} members" if size else "an object"


def _range(form: Schema) -> str:
    low, high = form.get("minimum"), form.get("maximum")
    if low is None or high is None:
        return "" if high is None and low is None else f" of at least {low}" if high is None else f" up to {high}"
    return f" from {_figure(low)} to {_figure(high)}"


def _size(form: Schema, what: str) -> str:
    low, high = form.get(f"min{what}"), form.get(f"max{what}")
    if not (low or high):
        return ""
    return f" {low} or more" if not high else f" {low} to {high:,}" if low else f" at most {high:,}"


def _said(value: Any, forms: Sequence[Schema]) -> str:
    """What was sent, in few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _figure(value)
    if isinstance(value, str):
        if _words(forms) and len(value) <= _WORD:
            return repr(value)
        return _text(value, forms)
    kind = "list" if isinstance(value, list) else "object"
    return f"a{'' if kind == 'list' else 'n'} {kind} of {len(value):,}" if value else f"an empty {kind}"


def _text(value: str, forms: Sequence[Schema]) -> str:
    if not value:
        return "an empty text"
    kinds = {form.get("type") for form in forms}
    if (
        "string" not in kinds
        and kinds & {"integer", "number", "boolean"}
        and (value.lower() in ("true", "false") or value.lstrip("-").replace(".", "", 1).isdecimal())
    ):
        return "in quotes, and so a text"
    return f"a text of {len(value):,} character{'s' if len(value) > 1 else ''}"


def _figure(value: float) -> str:
    """A number with its thousands apart; a long one as a power of ten."""
    shown = f"{value:,}" if isinstance(value, int) else repr(value)
    return shown if len(shown) <= _WORD else f"{value:.3g}"


def _near(value: Any, forms: Sequence[Schema]) -> str:
    words = _words(forms)
    if not (words and isinstance(value, str) and len(value) <= _WORD):
        return ""
    hint = nearest(value.lower(), words)
    return hint if "Did you mean" in hint else ""
