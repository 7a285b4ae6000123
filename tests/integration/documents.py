"""What the documentation says, taken apart: blocks of code, tables, links; and what ``docs/job.md`` must say of the fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.job import JobSpec

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]*)#?([^)\s]*)\)")
_LIMIT = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of code: where it begins, its language and its text."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    content = document.read_text()
    return [
        Block(
            document=document,
            line=content.count("\n", 0, found.start()) + 1,
            language=found[1],
            text=found[2],
        )
        for found in _BLOCK.finditer(content)
    ]


def links(document: Path) -> list[tuple[Path, str]]:
    """Return the file and the heading that each relative link of a document leads to."""
    found = _LINK.findall(_BLOCK.sub("", document.read_text()))
    return [(document.parent / file if file else document, part) for file, part in found if "://" not in file]


def anchors(document: Path) -> set[str]:
    """Return what a document's headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(document: Path, heading: str) -> str:
    """Return what stands under a heading, to the next one of its level or above; blocks of code are left out."""
    lines = _BLOCK.sub("", document.read_text()).splitlines()
    start = lines.index(heading)
    level = heading.split()[0]
    ends = (i for i in range(start + 1, len(lines)) if re.match(rf"#{{1,{len(level)}}} ", lines[i]))
    return "\n".join(lines[start + 1 : next(ends, len(lines))])


def table(text: str) -> list[list[str]]:
    """Return the cells of all tables in ``text``, heads and rules left out."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    heads = {i for i, line in enumerate(rows) if _is_followed_by_rule(text, line)}
    return [row for i, row in enumerate(cells) if i not in heads]


def named(text: str) -> list[str]:
    """Return, of each row of a table in ``text``, the code words of its first cell."""
    return [word for row in table(text) for word in re.findall(r"`([^`]+)`", row[0])]


def _is_followed_by_rule(text: str, line: str) -> bool:
    return re.search(re.escape(line) + r"\n\|[-:| ]+\|", text) is not None


def job_rows() -> Iterator[tuple[str, str, str]]:
    """Yield field, type and default of every field of ``job.json``, as the JSON Schema has them."""
    schema = JobSpec.json_schema()
    yield from _rows(schema, schema["$defs"], "")


def _rows(schema: dict[str, Any], parts: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in schema["properties"].items():
        required = name in schema.get("required", ())
        part = _part(field, parts)
        default = "required" if required else f"`{json.dumps(field.get('default'))}`"
        yield f"`{prefix}{name}`", _type(field, parts), default
        if part is not None:
            yield from _rows(part, parts, f"{prefix}{name}.")


def _part(field: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a field that is an object with fields of its own."""
    options = [option for option in field.get("anyOf", [field]) if "$ref" in option]
    part = parts[options[0]["$ref"].rpartition("/")[2]] if options else {}
    return part if "properties" in part else None


def _type(field: dict[str, Any], parts: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option, parts) for option in field["anyOf"])
    if "$ref" in field:
        part = parts[field["$ref"].rpartition("/")[2]]
        return "object" if "properties" in part else "name or object"
    if "enum" in field:
        few = len(field["enum"]) <= 3
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"]) if few else "name"
    kind = {"string": "text", "boolean": "true or false", "array": "list", "null": "null"}.get(field["type"])
    return kind or f"{field['type']}{_bounds(field)}"


def _bounds(field: dict[str, Any]) -> str:
    if "exclusiveMinimum" in field:
        return f" > {field['exclusiveMinimum']}"
    low, high = field.get("minimum", -_LIMIT), field.get("maximum", _LIMIT)
    if high < _LIMIT:
        return f" from {low} to {high}"
    return f" ≥ {low}" if low > -_LIMIT else ""
