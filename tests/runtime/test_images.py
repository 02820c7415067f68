"""Pictures that tools made reach models that can see, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentkit import Agent, Artifact, Tool, ToolOutput
from agentkit.runtime.images import sees
from agentkit.runtime.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.anyio
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 40


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-VL-4B-Instruct", "qwen2.5-vl:7b", "Qwen2.5-Omni-7B", "google/gemma-3-4b-it", "llava-1.6", "pixtral-12b"]
)  # fmt: skip
def test_models_that_see_are_known_by_name(name: str) -> None:
    assert sees(name)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-4B", "Qwen3-4B-AWQ", "demo", "qwen2.5-coder-1.5b", "llama-3", ""]
)
def test_models_that_do_not_see_are_not_taken_for_such(name: str) -> None:
    assert not sees(name)


async def asked(serve: Callable[..., Any], artifact: Artifact, **options: Any) -> list[dict[str, Any]]:
    """The messages of the second request: those after *artifact* was made."""

    async def draw(arguments: Any) -> ToolOutput:
        return ToolOutput("Files: plot.png", artifacts=(artifact,))

    call = {"index": 0, "id": "c1", "function": {"name": "draw", "arguments": "{}"}}
    model = serve(
        lambda x: (x.begin(), x.delta(tool_calls=[call]), x.delta(finish="tool_calls"), x.event("[DONE]")),
        lambda x: x.answer("A plot."),
    )
    engine = OpenAICompatible(model.url, "m", kind="vllm", **options)
    result = await Agent(engine, tools=[Tool("draw", "Draw.", {"type": "object"}, draw)]).run("Draw.")
    assert result.output == "A plot."
    messages: list[dict[str, Any]] = model.requests[1]["messages"]
    return messages


async def test_a_seeing_model_is_shown_the_picture_after_the_result(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path.resolve() / "plot.png"
    file.write_bytes(PNG)
    messages = await asked(serve, Artifact("plot.png", "image/png", path=str(file)), vision=True)
    assert [m["role"] for m in messages[-2:]] == ["tool", "user"]
    text, image = messages[-1]["content"]
    assert text["text"] == "plot.png:" and image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


async def test_others_read_its_name(serve: Callable[..., Any], tmp_path: Path) -> None:
    messages = await asked(serve, Artifact("plot.png", "image/png", data=PNG))
    assert messages[-1]["role"] == "tool" and "iVBOR" not in str(messages)


async def test_a_link_that_was_put_in_its_place_is_not_followed(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    secret, folder = tmp_path.resolve() / "secret.png", tmp_path.resolve() / "work"
    secret.write_bytes(PNG)
    folder.mkdir()
    (folder / "plot.png").symlink_to(secret)
    messages = await asked(
        serve, Artifact("plot.png", "image/png", path=str(folder / "plot.png")), vision=True
    )
    assert messages[-1]["role"] == "tool"


@pytest.mark.parametrize(
    "data", [b"root:x:0:0", b"", PNG + b"0" * (6 << 20)], ids=["no picture", "empty", "too big"]
)
async def test_what_is_no_picture_is_not_sent(serve: Callable[..., Any], data: bytes) -> None:
    messages = await asked(serve, Artifact("plot.png", "image/png", data=data), vision=True)
    assert messages[-1]["role"] == "tool"
