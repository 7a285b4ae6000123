"""The picture of a fused model: chains of blocks from the shared input on the left to the tasks on the right, as SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_COLOURS = ("#8ecae6", "#ffb703", "#95d5b2", "#f4978e", "#cdb4db", "#e9c46a", "#90be6d", "#f9c74f")
_ROW, _TOP, _GAP = 46, 24, 34
_CHARACTER, _TASK_CHARACTER = 6.7, 8.0  #: widths: of the monospaced labels of 11 pixels, and of bold task names of 12


@dataclass(slots=True, kw_only=True, eq=False)
class _Chain:
    """Nodes one after the other with nothing between that branches."""

    nodes: list[dict[str, Any]]
    children: list[_Chain]
    x: float = 0.0
    y: float = 0.0

    @property
    def label(self) -> str:
        first, last = self.nodes[0], self.nodes[-1]
        if first["kind"] == "input":
            return "input"
        if first["kind"] == "adapter":
            return "adapter"
        names = first["name"] if len(self.nodes) == 1 else f"{first['name']} … {last['name']}"
        return f"{first['task']}: {names}" + (f" ({len(self.nodes)})" if len(self.nodes) > 1 else "")

    @property
    def width(self) -> float:
        return 18 + _CHARACTER * len(self.label)

    @property
    def task_width(self) -> float:
        return 10 + _TASK_CHARACTER * len(self.nodes[-1]["task"] or "")


def colours_of(tasks: Sequence[str]) -> dict[str, str]:
    """Return a colour for each task, by name."""
    return {task: _COLOURS[number % len(_COLOURS)] for number, task in enumerate(tasks)}


def tree_svg(nodes: Sequence[dict[str, Any]], colours: dict[str, str]) -> str:
    """Return the picture of a tree.

    Args:
        nodes: As :func:`fusion.search.report.tree_to_json` gives them, each after its parent.
        colours: By task: a chain has the colour of the model whose blocks it is.
    """
    children: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        if node["parent"] is not None:
            children.setdefault(node["parent"], []).append(node)
    root = _chain(next(node for node in nodes if node["parent"] is None), children)
    rows = _place(root, 8.0, 0)
    chains = [*_walk(root)]
    width = max(chain.x + chain.width + (0 if chain.children else chain.task_width) for chain in chains) + 8
    height = _TOP + rows * _ROW
    lines = [_link(chain, child) for chain in chains for child in chain.children]
    boxes = [_box(chain, colours) for chain in chains]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' role='img' aria-label='the shared tree' width='{width:.0f}' "
        f"height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}'>{''.join(lines)}{''.join(boxes)}</svg>"
    )


def _chain(node: dict[str, Any], children: dict[str, list[dict[str, Any]]]) -> _Chain:
    nodes = [node]
    behind = children.get(node["id"], [])
    while len(behind) == 1 and _continues(nodes[-1], behind[0]):
        nodes.append(behind[0])
        behind = children.get(behind[0]["id"], [])
    return _Chain(nodes=nodes, children=[_chain(child, children) for child in behind])


def _continues(node: dict[str, Any], after: dict[str, Any]) -> bool:
    return node["kind"] not in ("input", "adapter") and after["kind"] != "adapter" and node["task"] == after["task"]


def _place(chain: _Chain, x: float, row: int) -> int:
    """Give a chain and all behind it their places; return how many rows are taken."""
    chain.x = x
    if not chain.children:
        chain.y = _TOP + row * _ROW + _ROW / 3
        return row + 1
    for child in chain.children:
        row = _place(child, x + chain.width + _GAP, row)
    chain.y = (chain.children[0].y + chain.children[-1].y) / 2
    return row


def _walk(chain: _Chain) -> list[_Chain]:
    return [chain, *(inner for child in chain.children for inner in _walk(child))]


def _link(chain: _Chain, child: _Chain) -> str:
    x1, x2 = chain.x + chain.width, child.x
    middle = (x1 + x2) / 2
    return (
        f"<path d='M{x1:.1f} {chain.y:.1f} C{middle:.1f} {chain.y:.1f} {middle:.1f} {child.y:.1f} {x2:.1f} {child.y:.1f}' "
        "fill='none' class='axis' stroke-width='1.4'/>"
    )


def _box(chain: _Chain, colours: dict[str, str]) -> str:
    first, last = chain.nodes[0], chain.nodes[-1]
    colour = colours.get(first["task"] or "", "#c9d1db")
    parameters = sum(node["parameters"] for node in chain.nodes)
    told = f"{chain.label}; {parameters} parameters; serves {', '.join(first['serves'])}"
    rounded = 14 if first["kind"] == "adapter" else 5
    picture = (
        f"<g class='box'><title>{html.escape(told)}</title><rect x='{chain.x:.1f}' y='{chain.y - 14:.1f}' "
        f"width='{chain.width:.1f}' height='28' rx='{rounded}' fill='{colour}' stroke='#00000033'/>"
        f"<text x='{chain.x + 9:.1f}' y='{chain.y + 4:.1f}'>{html.escape(chain.label)}</text></g>"
    )
    if chain.children:
        return picture
    x = chain.x + chain.width
    return picture + f"<text x='{x + 10:.1f}' y='{chain.y + 4:.1f}' class='task'>{html.escape(last['task'])}</text>"
