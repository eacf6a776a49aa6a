"""Which container of a Pod runs vLLM, and how arguments reach it."""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvpool_operator.injection import names
from kvpool_operator.injection.outcome import Skip, Why, refuse_long

SHELL_VARIABLE = "VLLM_ADDITIONAL_ARGS"
"""KServe's LLMInferenceService puts it into the command of its shell script; vLLM itself does not know it."""
_KSERVE = "kserve-container"
_RAY = ("ray-head", "ray-worker")
_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main", "huggingfaceserver")
_HUGGING_FACE = "huggingfaceserver"
_SHELLS = re.compile(r"(^|/)(ba|da|z|a|k)?sh$")
_SCRIPT = re.compile(r"\bvllm\s+serve\b|-m\s+(vllm\.entrypoints\.\S+|huggingfaceserver)\b")
_IMAGE = re.compile(r"(^|[/_.-])(vllm|huggingfaceserver)([/:@_.-]|$)|(^|/)kvpool/serving\b")
"""vllm/vllm-openai, lmcache/vllm-openai, kserve/huggingfaceserver, ...: images whose entry point is vLLM's server."""


class Style(enum.Enum):
    """How arguments reach vLLM."""

    ARGUMENTS = "arguments"
    """Appended to the container's ``args``."""
    SHELL = "shell"
    """A shell script that reads ``VLLM_ADDITIONAL_ARGS``."""
    RAY = "ray"
    """Not at all: ``ray start`` takes none, the connector is named in the RayService's serveConfigV2."""


@dataclass(frozen=True)
class Launch:
    """The container's place in ``spec.containers``, and its style."""

    index: int
    style: Style


def find(pod: Mapping[str, Any]) -> Launch:
    """The container to change.

    Raises:
        Skip: there is none, or more than one, or its command line can't be extended.
    """
    containers: Sequence[Mapping[str, Any]] = pod.get("spec", {}).get("containers") or []
    wanted = names.annotations_of(pod).get(names.CONTAINER)
    if names.ray_cluster(pod) is not None:
        return Launch(_ray_container(containers, wanted), Style.RAY)
    if wanted:
        index = _named(containers, wanted)
        return Launch(index, _style(containers[index], trusted=True))
    for index, container in enumerate(containers):
        # KServe gives this name to the predictor, whatever the runtime: only vLLM's are of use.
        if container["name"] == _KSERVE and _looks_like_vllm(container):
            return Launch(index, _style(container, trusted=False))
    candidates = [index for index, container in enumerate(containers) if _looks_like_vllm(container)]
    if not candidates:
        raise Skip(
            Why.NO_VLLM,
            "no container runs 'vllm serve', 'python -m vllm.entrypoints.openai.api_server' or 'python -m huggingfaceserver': "
            f"name it in the annotation {names.CONTAINER} if one of them does",
        )
    if len(candidates) > 1:
        found = ", ".join(str(containers[index]["name"]) for index in candidates)
        raise Skip(Why.SEVERAL, f"containers {found} all look like vLLM: name one in the annotation {names.CONTAINER}")
    return Launch(candidates[0], _style(containers[candidates[0]], trusted=False))


def words(container: Mapping[str, Any]) -> list[str]:
    """The whole command line, as far as the Pod says it."""
    return [*(container.get("command") or []), *(container.get("args") or [])]


def script(container: Mapping[str, Any]) -> str | None:
    """The text that a shell runs; None where no shell is the command.

    Raises:
        Skip: it is too long to be read.
    """
    line = words(container)
    if not line or not _SHELLS.search(line[0]):
        return None
    text = _run_by_shell(line)
    fix = f"put it into a file, or name the container that runs vLLM in the annotation {names.CONTAINER}"
    refuse_long(text, f"the shell script of container {container['name']}", fix)
    return text


def _run_by_shell(line: Sequence[str]) -> str:
    """Return what a shell with this command line runs."""
    for place, word in enumerate(line[1:], start=1):
        if re.fullmatch(r"-[a-z]*c", word):
            return line[place + 1] if place + 1 < len(line) else ""
    return " ".join(line[1:])


def positional(container: Mapping[str, Any]) -> list[str]:
    """What a shell hands to its script as ``$@``."""
    line, text = words(container), script(container)
    return line[line.index(text) + 2 :] if text in line else []  # the word behind the script is its $0


def _ray_container(containers: Sequence[Mapping[str, Any]], wanted: str | None) -> int:
    """KubeRay runs Ray in the first container and calls it ray-head or ray-worker by custom only."""
    if wanted:
        return _named(containers, wanted)
    return next((index for index, container in enumerate(containers) if container["name"] in _RAY), 0)


def _named(containers: Sequence[Mapping[str, Any]], wanted: str) -> int:
    for index, container in enumerate(containers):
        if container["name"] == wanted:
            return index
    known = ", ".join(str(container["name"]) for container in containers)
    raise Skip(Why.NO_VLLM, f"the annotation {names.CONTAINER} names {wanted}, but the Pod's containers are {known}")


def _looks_like_vllm(container: Mapping[str, Any]) -> bool:
    text = script(container)
    if text is not None:
        return _SCRIPT.search(text) is not None
    return _starts_vllm(words(container)) or (not container.get("command") and _is_vllm_image(container))


def _is_vllm_image(container: Mapping[str, Any]) -> bool:
    return _IMAGE.search(str(container.get("image", ""))) is not None


def _starts_vllm(line: Sequence[str]) -> bool:
    for word, following in itertools.pairwise(line):
        if word.rpartition("/")[2] == "vllm" and following == "serve":
            return True
        if word == "-m" and following in _MODULES:
            return True
    return False


def _style(container: Mapping[str, Any], *, trusted: bool) -> Style:
    """How arguments reach this container's vLLM.

    Args:
        trusted: a person named the container, so a program that we don't know is taken to hand its arguments on.
    """
    text = script(container)
    if text is not None:
        if SHELL_VARIABLE in text:
            return Style.SHELL
        raise Skip(
            Why.SHELL,
            f"container {container['name']} starts vLLM in a shell script, to which nothing can be appended: write "
            f"${{{SHELL_VARIABLE}}} at the end of its 'vllm serve' line, or start vLLM by command and args without a shell",
        )
    line = words(container)
    if not line or (not trusted and not _starts_vllm(line) and not container.get("args")):
        raise Skip(
            Why.NO_ARGUMENTS,
            f"container {container['name']} has neither command nor args, and args of ours would replace those of the image: "
            "write vLLM's arguments into args",
        )
    if _uses_transformers(container, line):
        raise Skip(Why.OTHER_BACKEND, "the Hugging Face server is told to use another backend: remove --backend")
    return Style.ARGUMENTS


def _uses_transformers(container: Mapping[str, Any], line: Sequence[str]) -> bool:
    """KServe's Hugging Face server runs vLLM unless ``--backend huggingface`` is there."""
    if _HUGGING_FACE not in line and _HUGGING_FACE not in str(container.get("image", "")):
        return False
    return any(
        word == "--backend=huggingface" or (word == "--backend" and following == "huggingface")
        for word, following in zip(line, [*line[1:], ""], strict=True)
    )


def possible_source(container: Mapping[str, Any]) -> str | None:
    """Return the first object of ``envFrom`` that can hold ``SHELL_VARIABLE``, or None if none can.

    What is in it cannot be seen here, and a variable in ``env`` takes the place of one from there.
    """
    for source in container.get("envFrom") or ():
        if not SHELL_VARIABLE.startswith(source.get("prefix") or ""):
            continue
        for kind, reference in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if reference in source:
                return f"{kind} {source[reference].get('name', '')}"
    return None
