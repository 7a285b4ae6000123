"""``/docs``: the routes as one plain page, made from the OpenAPI document; no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_METHODS = ("get", "put", "post", "head")


def docs_page(openapi: Mapping[str, Any]) -> str:
    """Return the page for an OpenAPI document."""
    title = escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body><h1>{title}</h1>'
        f'<p>{escape(openapi["info"]["description"])}</p><p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(_routes(openapi))}<h2>Schemas</h2>{''.join(_schemas(openapi))}</body></html>"
    )


def _routes(openapi: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in openapi["paths"].items():
        for method in _METHODS:
            if method in methods:
                yield _route(method, path, methods[method])


def _route(method: str, path: str, route: Mapping[str, Any]) -> str:
    parameters = "".join(_row(p["name"], p["in"], _kind(p.get("schema", {})), p) for p in route.get("parameters", ()))
    bodies = "".join(
        _row("body", content, _kind(body.get("schema", {})), body.get("schema", {}))
        for content, body in route.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        _row(status, " ".join(answer.get("content", {})), _kinds(answer), answer)
        for status, answer in route["responses"].items()
    )
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(route.get('description', ''))}</p>"
        f"<table>{parameters}{bodies}{answers}</table>"
    )


def _schemas(openapi: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in openapi["components"]["schemas"].items():
        rows = "".join(_row(field, "", _kind(value), value) for field, value in schema.get("properties", {}).items())
        yield f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p><table>{rows}</table>'


def _row(name: str, place: str, kind: str, described: Mapping[str, Any]) -> str:
    text = escape(str(described.get("description", "")))
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(place)}</td><td>{kind}</td><td>{text}</td></tr>"


def _kinds(answer: Mapping[str, Any]) -> str:
    return " ".join(dict.fromkeys(_kind(body["schema"]) for body in answer.get("content", {}).values() if "schema" in body))


def _kind(schema: Mapping[str, Any]) -> str:
    """Return a schema in a few words, with a link if it has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema:
        return escape(" | ".join(map(str, schema["enum"])))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("format") or schema.get("type") or ""))
