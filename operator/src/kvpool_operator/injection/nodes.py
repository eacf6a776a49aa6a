"""A YAML text as a tree of nodes, so that what is left alone is written as it was read.

``0755``, ``yes`` or ``1:30`` mean different things to different parsers; a node that is kept is none of our business. For
decisions a node is shown as Python values (``value``): words, mappings and lists remember the node that they are, anything else
is still one. What comes out of a decision goes back into the tree (``node``), and what was in it goes back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

_MERGE = "<<"
_MAPPING, _SEQUENCE, _WORD = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:str"
_NULL, _BOOLEAN = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"


class _Word(str):
    __slots__ = ("origin",)
    origin: yaml.Node


class _Mapping(dict[str, Any]):
    """Not to be changed: its origin would not be."""

    __slots__ = ("origin",)
    origin: yaml.Node


def get(parent: yaml.Node | None, key: str) -> yaml.Node | None:
    """The value of a key, also where a merge key (``<<``) brings it in."""
    if not isinstance(parent, yaml.MappingNode):
        return None
    inherited: yaml.Node | None = None
    for name, found in parent.value:
        if name.value == key:
            own: yaml.Node = found
            return own
        if name.value == _MERGE and inherited is None:
            sources = items(found) if isinstance(found, yaml.SequenceNode) else [found]
            inherited = next(
                (one for source in sources if source is not parent and (one := get(source, key)) is not None), None
            )
    return inherited


def put(parent: yaml.MappingNode, key: str, child: yaml.Node) -> None:
    """Set a key: in its place where the mapping has it itself, else at the end."""
    for place, (name, _) in enumerate(parent.value):
        if name.value == key:
            parent.value[place] = (name, child)
            return
    parent.value.append((node(key), child))


def items(parent: yaml.Node | None) -> list[yaml.Node]:
    return list(parent.value) if isinstance(parent, yaml.SequenceNode) else []


def expanded(root: yaml.Node, most: int) -> int:
    """Return how many nodes a tree has if each alias is replaced by what it repeats.

    A text of 400 bytes can have billions, because each level of aliases multiplies them. Any number
    above ``most``, and a node that is within itself, count as ``most`` + 1.
    """
    counts: dict[int, int | None] = {}  # None: being counted
    stack = [(root, False)]
    while stack:
        found, is_done = stack.pop()
        if not isinstance(found, yaml.CollectionNode):
            counts[id(found)] = 1
            continue
        parts = _parts(found)
        if is_done:
            total = 1 + sum(counts[id(part)] or 0 for part in parts)
            counts[id(found)] = min(total, most + 1)
        elif id(found) not in counts:
            counts[id(found)] = None
            stack.append((found, True))
            stack += [(part, False) for part in parts]
        elif counts[id(found)] is None:
            return most + 1
    return counts[id(root)] or 0


def _parts(found: yaml.CollectionNode) -> list[yaml.Node]:
    if isinstance(found, yaml.MappingNode):
        return [part for pair in found.value for part in pair]
    return list(found.value)


def is_null(found: yaml.Node) -> bool:
    return isinstance(found, yaml.ScalarNode) and found.tag == _NULL


def is_false(found: yaml.Node | None) -> bool:
    return (
        isinstance(found, yaml.ScalarNode)
        and found.tag == _BOOLEAN
        and not yaml.SafeLoader.bool_values[found.value.lower()]
    )


def value(found: yaml.Node) -> Any:
    """Mappings, lists and words as Python has them; anything else, and mappings with other keys than words, as the node."""
    if isinstance(found, yaml.SequenceNode):
        return [value(one) for one in found.value]
    if isinstance(found, yaml.MappingNode):
        pairs = _pairs(found)
        if any(name.tag != _WORD for name, _ in pairs):
            return found
        mapping = _Mapping((name.value, value(one)) for name, one in pairs)
        mapping.origin = found
        return mapping
    if found.tag != _WORD:
        return found
    word = _Word(found.value)
    word.origin = found
    return word


def _pairs(found: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """What merge keys bring in comes first, so that what stands behind it counts."""
    own = [(name, one) for name, one in found.value if name.value != _MERGE]
    sources = [one for name, value_ in found.value if name.value == _MERGE for one in items(value_) or [value_]]
    brought = [pair for one in reversed(sources) if isinstance(one, yaml.MappingNode) for pair in _pairs(one)]
    return brought + own


def node(content: Any) -> yaml.Node:
    """The way back from ``value``."""
    if isinstance(content, yaml.Node):
        return content
    if isinstance(content, _Word | _Mapping):
        return content.origin
    if isinstance(content, Mapping):
        pairs = [(node(key), node(one)) for key, one in content.items()]
        return yaml.MappingNode(_MAPPING, pairs, flow_style=False)
    if isinstance(content, list):
        return yaml.SequenceNode(_SEQUENCE, [node(one) for one in content], flow_style=False)
    return yaml.ScalarNode(_WORD, str(content))
