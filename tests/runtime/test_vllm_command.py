"""Which options a model needs of which vLLM or SGLang: tables, and nothing is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import ConfigError, EngineError
from agentkit.runtime.families import chat_template_of, family_of
from agentkit.runtime.hosted import ServerOptions
from agentkit.runtime.installed import Installation
from agentkit.runtime.sglang import SGLang, sglang_command
from agentkit.runtime.vllm import Vllm, vllm_command

TODAY = (0, 33, 0)
VERSIONS = [
    (0, 8, 5),
    (0, 9, 0),
    (0, 10, 0),
    (0, 10, 1),
    (0, 11, 0),
    (0, 12, 0),
    (0, 16, 0),
    (0, 20, 0),
    TODAY,
]
API_SERVER = "vllm.entrypoints.openai.api_server"


def vllm(version: tuple[int, ...] | None = TODAY, **changes: Any) -> Installation:
    return replace(Installation("vllm", "/env/bin/python", True, API_SERVER, version), **changes)


def asked(model: str = "Qwen/Qwen3-4B", template: str | None = None, **changes: Any) -> ServerOptions:
    name = model.rpartition("/")[2]
    return ServerOptions(model=model, name=name, family=family_of(model, template=template), **changes)


def options(argv: tuple[str, ...]) -> dict[str, str | None]:
    """The options with their values, as argparse would have them: the last of a name counts."""
    found: dict[str, str | None] = {}
    for part, following in zip(argv, [*argv[1:], "--"], strict=True):
        if part.startswith("--"):
            found[part] = None if following.startswith("--") else following
    return found


def served(
    model: str = "Qwen/Qwen3-4B", version: tuple[int, ...] | None = TODAY, gpus: int = 1, **changes: Any
) -> dict[str, str | None]:
    return options(vllm_command(asked(model, **changes), vllm(version), gpus).argv)


def test_the_whole_command_of_qwen3_on_todays_vllm() -> None:
    command = vllm_command(asked(), vllm(), gpus=1)
    assert command.argv == (
        *("/env/bin/python", "-m", API_SERVER, "--model", "Qwen/Qwen3-4B"),
        *("--served-model-name", "Qwen3-4B", "--host", "127.0.0.1", "--port", "{port}"),
        *("--max-model-len", "auto", "--tool-call-parser", "hermes", "--enable-auto-tool-choice"),
        *("--reasoning-parser", "qwen3", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
    )
    assert command.env["VLLM_API_KEY"] == "{api_key}" and "{api_key}" not in " ".join(command.argv)
    assert command.ready_timeout >= 600


def test_the_whole_command_of_qwen3_on_the_model_cards_vllm() -> None:
    assert vllm_command(asked(context=131_072), vllm((0, 8, 5)), gpus=1).argv[5:] == (
        *("--served-model-name", "Qwen3-4B", "--host", "127.0.0.1", "--port", "{port}"),
        *("--max-model-len", "131072", "--rope-scaling"),
        '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}',
        *("--tool-call-parser", "hermes", "--enable-auto-tool-choice"),
        *("--reasoning-parser", "deepseek_r1", "--enable-reasoning"),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--disable-log-requests"),
    )


# model -> (tool parser, reasoning parser) by the first version that wants them
PARSERS: dict[str, list[tuple[tuple[int, ...], str | None, str | None]]] = {
    "Qwen/Qwen3-4B": [((0, 8, 5), "hermes", "deepseek_r1"), ((0, 9), "hermes", "qwen3")],
    "Qwen/Qwen3-4B-AWQ": [((0, 8, 5), "hermes", "deepseek_r1"), ((0, 9), "hermes", "qwen3")],
    "Qwen/Qwen3-30B-A3B-FP8": [((0, 8, 5), "hermes", "deepseek_r1"), ((0, 9), "hermes", "qwen3")],
    "Qwen/Qwen3-4B-Instruct-2507": [((0, 8, 5), "hermes", None)],
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": [((0, 8, 5), "hermes", None)],
    "Qwen/Qwen3-4B-Thinking-2507": [((0, 8, 5), "hermes", "deepseek_r1"), ((0, 17), "hermes", "qwen3")],
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": [
        ((0, 8, 5), None, None),
        ((0, 10), "qwen3_coder", None),
        ((0, 11), "qwen3_xml", None),
    ],
    "Qwen/Qwen3.5-4B": [((0, 17), "qwen3_xml", "qwen3")],
    "Qwen/QwQ-32B": [((0, 8, 5), "hermes", "deepseek_r1"), ((0, 17), "hermes", "qwen3")],
    "Qwen/Qwen2.5-7B-Instruct": [((0, 8, 5), "hermes", None)],
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": [((0, 8, 5), "hermes", None)],
    "meta-llama/Llama-3.1-8B-Instruct": [((0, 8, 5), None, None)],
}


@pytest.mark.parametrize(
    ("model", "version"), [(m, v) for m in PARSERS for v in VERSIONS if v >= PARSERS[m][0][0]]
)
def test_parsers_are_those_of_the_models_family_in_that_version(model: str, version: tuple[int, ...]) -> None:
    _, tools, thoughts = [row for row in PARSERS[model] if row[0] <= version][-1]
    found = served(model, version)
    assert (found.get("--tool-call-parser"), found.get("--reasoning-parser")) == (tools, thoughts)
    assert ("--enable-auto-tool-choice" in found) == (tools is not None)
    assert ("--enable-reasoning" in found) == (thoughts is not None and version < (0, 9))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_gets_the_options_it_knows(version: tuple[int, ...]) -> None:
    found = served("Qwen/Qwen3-4B", version, context=65_536)
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details"} <= found.keys()
    assert ("--rope-scaling" in found) == (version < (0, 12)) != ("--hf-overrides" in found)
    assert ("--disable-log-requests" in found) == (version < (0, 11))
    assert ("--max-model-len" in served("Qwen/Qwen3-4B", version)) == (version >= (0, 14))


def test_an_unknown_version_is_taken_for_todays_and_one_that_is_too_old_is_refused() -> None:
    assert served(version=None) == served()
    with pytest.raises(
        EngineError, match=r"vLLM 0\.8\.4 is too old for Qwen3; run: pip install -U 'vllm>=0\.8\.5'"
    ):
        served(version=(0, 8, 4))


@pytest.mark.parametrize(
    ("context", "factor"),
    [
        (None, None),
        (8_192, None),
        (32_768, None),
        (40_960, None),
        (40_961, 2),
        (65_536, 2),
        (98_304, 3),
        (131_072, 4),
    ],
)
def test_yarn_is_on_only_for_more_than_the_model_reads_by_itself(
    context: int | None, factor: int | None
) -> None:
    found = served(context=context).get("--hf-overrides")
    assert (found is None) == (factor is None)
    if found and factor:
        assert json.loads(found) == {
            "max_position_embeddings": factor * 32_768,  # vLLM does not derive it any more
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": float(factor),
                "original_max_position_embeddings": 32_768,
                "rope_theta": 1_000_000.0,
            },
        }


@pytest.mark.parametrize(
    ("model", "context", "longest"),
    [
        ("Qwen/Qwen3-4B", 131_073, "131,072 tokens (with YaRN)"),
        ("Qwen/Qwen3-0.6B", 65_536, "40,960 tokens,"),
        ("Qwen/Qwen3-4B-Instruct-2507", 262_145, "262,144 tokens,"),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 40_960, "32,768 tokens,"),
    ],
)
def test_a_context_longer_than_the_model_can_read_is_refused_at_once(
    model: str, context: int, longest: str
) -> None:
    for engine in (Vllm, SGLang):
        with pytest.raises(ConfigError) as error:
            engine(model, context=context)
        assert longest in str(error.value)


@pytest.mark.parametrize(
    ("gpus", "parallel"), [(0, None), (1, None), (2, "2"), (3, "2"), (4, "4"), (7, "4"), (8, "8")]
)
def test_the_model_is_divided_among_a_power_of_two_of_gpus(gpus: int, parallel: str | None) -> None:
    assert served(gpus=gpus).get("--tensor-parallel-size") == parallel
    assert served(gpus=gpus, tensor_parallel=2)["--tensor-parallel-size"] == "2"


def test_what_is_asked_for_is_passed_on_and_an_empty_parser_is_none() -> None:
    found = served(
        dtype="half",
        quantization="awq",
        chat_template="/t.jinja",
        tool_parser="qwen3_coder",
        reasoning_parser="",
    )
    assert (found["--dtype"], found["--quantization"], found["--chat-template"]) == (
        "half",
        "awq",
        "/t.jinja",
    )
    assert found["--tool-call-parser"] == "qwen3_coder" and "--reasoning-parser" not in found
    assert "--enable-auto-tool-choice" not in served(tool_parser="")


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (("--max-model-len", "4096"), "--max-model-len"),
        (("--max_model_len=4096",), "--max-model-len"),
        (("-tp", "4"), "--tensor-parallel-size"),
        (("--no-enable-prefix-caching",), "--enable-prefix-caching"),
        (("--reasoning-parser", "deepseek_r1"), "--reasoning-parser"),
        (("--hf-overrides", "{}"), "--hf-overrides"),
    ],
)
def test_an_option_that_the_user_gives_replaces_ours(args: tuple[str, ...], option: str) -> None:
    argv = vllm_command(asked(context=65_536, args=args), vllm(), gpus=2).argv
    assert argv[-len(args) :] == args and option not in argv[: -len(args)]


def test_a_parser_among_the_users_options_switches_tool_calls_on() -> None:
    found = served("meta-llama/Llama-3.1-8B-Instruct", args=("--tool-call-parser", "llama3_json"))
    assert "--enable-auto-tool-choice" in found and found["--tool-call-parser"] == "llama3_json"


@pytest.mark.parametrize("option", ["--port", "--host=0.0.0.0", "--api-key", "--served_model_name"])
def test_options_that_would_lose_the_server_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="agentkit sets it"):
        served(args=(option, "x"))


def test_a_vllm_is_run_as_its_installation_allows() -> None:
    def begins(**changes: Any) -> tuple[str, ...]:
        return vllm_command(asked(), vllm(**changes), gpus=0).argv[:5]

    assert begins(program="/bin/vllm", python=False, module=None)[:3] == (
        "/bin/vllm",
        "serve",
        "Qwen/Qwen3-4B",
    )
    assert begins(module=None) == (
        "/env/bin/python",
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        "Qwen/Qwen3-4B",
    )


def test_without_a_gpu_vllm_leaves_memory_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = "VLLM_CPU_KVCACHE_SPACE"
    monkeypatch.delenv(cache, raising=False)
    assert Vllm().build(vllm(), 0).env[cache] == "4" and cache not in Vllm().build(vllm(), 1).env
    assert Vllm(env={cache: "9"}).build(vllm(), 0).env[cache] == "9"
    monkeypatch.setenv(cache, "12")  # which vLLM sees
    assert cache not in Vllm().build(vllm(), 0).env


# families

QWEN3 = Path(__file__).parents[1] / "e2e" / "qwen3_chat_template.jinja"
GENERATION = "{%%- if add_generation_prompt %%}{{- '<|im_start|>assistant\\n%s' }}{%%- endif %%}"


def test_the_chat_template_decides_how_the_model_writes_and_its_name_how_far_it_reads(tmp_path: Path) -> None:
    json_calls, xml_calls = "<tool_call>\\n{name}", "<tool_call>\\n<function=f>"
    for template, calls, thinks in [
        (QWEN3.read_text(), "json", "switched"),
        (json_calls + GENERATION % "<think>\\n", "json", "always"),
        ("split('</think>') '<think>\\n' + " + json_calls + GENERATION % "", "json", "never"),
        (xml_calls + GENERATION % "", "xml", "never"),
    ]:
        family = family_of("/models/Qwen3-4B", template=template)
        assert family and (family.calls, family.thinks, family.longest) == (calls, thinks, 131_072)
        unknown = family_of("/models/mine", template=template)
        assert unknown and (unknown.calls, unknown.thinks, unknown.context) == (calls, thinks, 0)
    assert family_of("/models/mine", template="{{ messages }}") is None and family_of("mine") is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": json_calls}))
    assert chat_template_of(tmp_path) == json_calls
    (tmp_path / "chat_template.jinja").write_text(xml_calls)
    assert chat_template_of(tmp_path) == xml_calls
    assert chat_template_of(tmp_path / "nothing") is None


def test_a_template_given_by_hand_decides_and_must_be_there(tmp_path: Path) -> None:
    engine = Vllm("Qwen/Qwen2.5-Coder-1.5B-Instruct", chat_template=QWEN3)
    assert engine.options.family and engine.options.family.thinks == "switched"
    with pytest.raises(ConfigError, match="cannot be read"):
        Vllm(chat_template=tmp_path / "none.jinja")


# SGLang


def sglang(
    model: str = "Qwen/Qwen3-4B", version: tuple[int, ...] | None = (0, 5, 23), gpus: int = 1, **changes: Any
) -> Any:
    return sglang_command(
        asked(model, **changes),
        Installation("sglang", "/env/bin/python", True, "sglang.launch_server", version),
        gpus,
    )


def test_the_whole_command_of_qwen3_on_sglang() -> None:
    command = sglang(context=131_072, gpus=2)
    assert command.argv == (
        *("/env/bin/python", "-m", "sglang.launch_server", "--model-path", "Qwen/Qwen3-4B"),
        *("--served-model-name", "Qwen3-4B", "--host", "127.0.0.1", "--port", "{port}"),
        *("--context-length", "131072", "--json-model-override-args"),
        '{"max_position_embeddings": 131072, "rope_scaling": '
        '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}',
        *("--tp-size", "2", "--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3"),
        *("--enable-cache-report", "--config", "{dir}/key.yaml"),
    )
    assert command.files == {"key.yaml": 'api-key: "{api_key}"\n'}


@pytest.mark.parametrize(
    ("model", "tools", "thoughts"),
    [
        ("Qwen/Qwen3-4B", "qwen25", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen25", None),
        ("Qwen/Qwen3-4B-Thinking-2507", "qwen25", "deepseek-r1"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder", None),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen25", None),
        ("meta-llama/Llama-3.1-8B-Instruct", None, None),
    ],
)
def test_sglang_gets_the_parsers_of_the_family(model: str, tools: str | None, thoughts: str | None) -> None:
    found = options(sglang(model).argv)
    assert (found.get("--tool-call-parser"), found.get("--reasoning-parser")) == (tools, thoughts)


def test_an_old_sglang_takes_its_key_as_an_argument_and_the_users_options_win() -> None:
    assert options(sglang(version=(0, 4, 6)).argv)["--api-key"] == "{api_key}"
    argv = sglang(context=8_192, gpus=4, args=("--tp", "2", "--context-length=4096")).argv
    assert argv[-3:] == ("--tp", "2", "--context-length=4096") and "--tp-size" not in argv
    with pytest.raises(ConfigError):
        sglang(args=("--config", "mine.yaml"))
