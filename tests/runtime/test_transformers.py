"""A model in this process: tiny Qwen3 models, made here, one of random weights and some that follow a script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentkit import Agent, ContextOverflow, EngineError, Limits, ModelNotFound, ModelSettings
from agentkit.messages import Message, Text, Thinking, ToolCall, ToolResult, Usage, system, user
from agentkit.runtime.engine import Chunk, Counting, Engine, Request
from agentkit.runtime.transformers import Transformers

pytestmark = pytest.mark.anyio
TEMPLATE = Path(__file__).parent.parent / "e2e" / "qwen3_chat_template.jinja"
THINK, CLOSE, END = "<think>", "</think>", "<|im_end|>"
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
PLAIN = [END, "<|im_start|>", "<|endoftext|>"]
ADDED = [*PLAIN, THINK, CLOSE, CALL, "Hel", "lo", "Well", "…"]
GREEDY = ModelSettings(temperature=0.0, max_tokens=24)
Script = Callable[..., Transformers]


@pytest.fixture(scope="module")
def hf() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(hf: Any) -> Any:
    """Bytes and a few words; the real names of Qwen3's special tokens, and its chat template."""
    import importlib

    tokenizers = importlib.import_module("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_tokens([tokenizers.AddedToken(t, special=t in PLAIN, normalized=False) for t in ADDED])
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return fast


def qwen3(hf: Any, tokenizer: Any, **config: Any) -> Any:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            vocab_size=len(tokenizer),
            intermediate_size=32,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **sizes | config,
        )
    )


@pytest.fixture(scope="module")
def random_model(hf: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Qwen3 of random weights, which has something to say about everything."""
    directory = tmp_path_factory.mktemp("random")
    hf.set_seed(7)
    qwen3(hf, tokenizer, hidden_size=32, initializer_range=0.5).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def script(hf: Any, tokenizer: Any, tmp_path: Path) -> Script:
    """`script("\\n", "Hel", "lo", END)`: a model that writes, after each of these tokens, the next one."""
    import importlib

    torch = importlib.import_module("torch")

    def made(*words: str, margin: float = 1.0, template: str | None = None) -> Transformers:
        size = 8 * (len(tokenizer) // 8 + 1)
        model = qwen3(hf, tokenizer, hidden_size=size)
        with torch.no_grad():
            for name, weight in model.named_parameters():  # the layers say nothing: what comes in goes out
                if "o_proj" in name or "down_proj" in name:
                    weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
            model.lm_head.weight.zero_()
            for now, then in pairwise(tokenizer("".join(words))["input_ids"]):
                model.lm_head.weight[then, now] = margin
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        return Transformers(str(tmp_path))

    return made


async def collect(engine: Engine, request: Request) -> list[Chunk]:
    async with aclosing(engine.stream(request)) as chunks:
        return [c async for c in chunks]


def text(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


def reasoning(chunks: list[Chunk]) -> str:
    return "".join(c.reasoning for c in chunks)


def ask(question: str = "hi", **settings: Any) -> Request:
    return Request([user(question)], settings=replace(GREEDY, **settings))


async def test_greedy_text_and_counts_are_those_of_generate(
    hf: Any, tokenizer: Any, random_model: str
) -> None:
    request = Request([system("Be brief."), user("What now? 你好 🙂")], settings=GREEDY)
    chunks = await collect(Transformers(random_model), request)
    chats = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What now? 你好 🙂"}]
    prompt = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    model = hf.AutoModelForCausalLM.from_pretrained(random_model)
    read = prompt["input_ids"].shape[1]
    mask = prompt["attention_mask"]
    answer = model.generate(prompt["input_ids"], attention_mask=mask, max_new_tokens=24, do_sample=False)[0][
        read:
    ]
    assert text(chunks) == tokenizer.decode(answer) and len(answer) == 24
    assert chunks[-1] == Chunk(finish_reason="length", usage=Usage(read, 24))


async def test_an_answer_ends_at_the_end_of_turn_token(script: Script) -> None:
    chunks = await collect(script("\n", "Hel", "lo", END), ask())
    assert [c.text for c in chunks] == ["Hel", "lo", ""]
    assert chunks[-1].finish_reason == "stop" and chunks[-1].usage is not None
    assert chunks[-1].usage.output_tokens == 3


async def test_thoughts_are_told_apart_by_their_tokens(script: Script) -> None:
    engine = script("\n", THINK, "Well", "…", CLOSE, "Hel", "lo", END)
    chunks = await collect(engine, ask(thinking=True))
    assert (reasoning(chunks), text(chunks)) == ("Well…", "Hello")


async def test_a_template_that_opens_the_think_block_makes_the_answer_begin_with_thoughts(
    script: Script,
) -> None:
    template = TEMPLATE.read_text(encoding="utf-8") + "{{- '<think>\\n' }}"
    chunks = await collect(script("\n", "Well", CLOSE, "Hel", "lo", END, template=template), ask())
    assert (reasoning(chunks), text(chunks)) == ("Well", "Hello")


async def test_thoughts_that_are_never_closed_stay_thoughts(script: Script) -> None:
    chunks = await collect(script("\n", THINK, "Well", "…", "Well"), ask(max_tokens=5))
    assert (reasoning(chunks), text(chunks)) == ("Well…Well…", "")
    assert chunks[-1].finish_reason == "length"


async def test_a_model_that_was_not_to_think_has_its_tags_left_in_the_text(script: Script) -> None:
    chunks = await collect(script("\n", "Hel", CLOSE, "lo", END), ask(thinking=False))
    assert (reasoning(chunks), text(chunks)) == ("", "Hel</think>lo")


async def test_the_hard_switch_is_the_templates(script: Script, tokenizer: Any) -> None:
    engine = script("\n", "Hel", END)
    on, off = await engine.count_tokens(ask(thinking=True)), await engine.count_tokens(ask(thinking=False))
    assert off - on == len(tokenizer("<think>\n\n</think>\n\n")["input_ids"])


async def test_a_stop_string_ends_the_answer_wherever_tokens_cut_it(script: Script) -> None:
    chunks = await collect(script("\n", "Well", "Hel", "lo", "…", END), ask(stop=("never", "llo…")))
    assert text(chunks) == "WellHe"
    assert chunks[-1].finish_reason == "stop"


async def test_what_only_began_like_a_stop_string_is_told_in_the_end(script: Script) -> None:
    chunks = await collect(script("\n", "Hel", "lo", END), ask(stop=("lots",)))
    assert text(chunks) == "Hello"


async def test_a_character_of_several_tokens_comes_whole(script: Script) -> None:
    chunks = await collect(script("\n", "Hel", "🙂", "lo", "é", END), ask())
    assert [c.text for c in chunks] == ["Hel", "🙂", "lo", "é", ""]
    cut = await collect(script("\n", "Hel", "🙂", END), ask(max_tokens=3))
    assert text(cut) == "Hel\ufffd"


async def test_presence_penalty_keeps_the_model_from_saying_it_again(script: Script) -> None:
    loop = script("\n", "Well", "Well", margin=0.05)  # scores of about 0.8, and zero for everything else
    assert text(await collect(loop, ask(max_tokens=4))) == "WellWellWellWell"
    assert text(await collect(loop, ask(max_tokens=4, presence_penalty=1.5))).count("Well") == 1


async def test_the_same_seed_says_the_same(random_model: str) -> None:
    engine = Transformers(random_model)
    hot: dict[str, Any] = {"temperature": 2.0, "top_p": 0.99, "top_k": 200, "min_p": 0.0001}
    said = [text(await collect(engine, ask(seed=s, **hot))) for s in (1, 1, 2, None)]
    assert said[0] == said[1] and len(set(said)) == 3


async def test_leaving_an_answer_early_frees_the_model_for_the_next(random_model: str) -> None:
    engine = Transformers(random_model)
    with anyio.fail_after(60):
        async with aclosing(engine.stream(ask(max_tokens=1_000_000_000))) as chunks:
            async for _ in chunks:
                break
        assert (await collect(engine, ask()))[-1].finish_reason is not None


async def test_cancelling_in_the_middle_frees_the_model_for_the_next(random_model: str) -> None:
    engine = Transformers(random_model)
    begun = anyio.Event()

    async def talk() -> None:
        async for _ in engine.stream(ask(max_tokens=1_000_000_000)):
            begun.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            await begun.wait()  # so the event loop is free while the model works
            tasks.cancel_scope.cancel()
        assert (await collect(engine, ask()))[-1].finish_reason is not None


async def test_several_agents_take_turns(random_model: str) -> None:
    engine = Transformers(random_model)
    alone = {q: text(await collect(engine, ask(q))) for q in ("one", "two", "three")}
    together: dict[str, str] = {}

    async def talk(question: str) -> None:
        together[question] = text(await collect(engine, ask(question)))

    async with anyio.create_task_group() as tasks:
        for question in alone:
            tasks.start_soon(talk, question)
    assert together == alone


async def test_a_prompt_that_extends_the_last_is_not_read_again(random_model: str) -> None:
    engine = Transformers(random_model)
    first = ask("Tell me. " * 60)  # longer than one piece of prefill
    answer = await collect(engine, first)
    grown = replace(
        first, messages=[*first.messages, Message("assistant", (Text(text(answer)),)), user("And then?")]
    )
    warm = await collect(engine, grown)
    cold = await collect(Transformers(random_model), grown)
    assert text(warm) == text(cold) and cold[-1].usage is not None and warm[-1].usage is not None
    assert cold[-1].usage.cached_tokens == 0
    assert first_tokens(answer) <= warm[-1].usage.cached_tokens < warm[-1].usage.input_tokens
    again = await collect(engine, grown)
    assert text(again) == text(cold) and again[-1].usage is not None
    assert again[-1].usage.cached_tokens == again[-1].usage.input_tokens - 1


def first_tokens(chunks: list[Chunk]) -> int:
    assert chunks[-1].usage is not None
    return chunks[-1].usage.input_tokens


async def test_the_count_before_is_the_usage_after(random_model: str) -> None:
    engine = Transformers(random_model)
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
    history = [
        user("When?"),
        Message("assistant", (Thinking("a clock"), ToolCall("1", "now", {"zone": "Köln"}))),
        Message("tool", (ToolResult("1", "12:00", name="now"),)),
    ]
    request = Request(history, tools, GREEDY)
    assert isinstance(engine, Counting) and await engine.context_length() == 2048
    assert await engine.count_tokens(request) == first_tokens(await collect(engine, request))
    without = replace(request, tools=())
    assert await engine.count_tokens(without) < await engine.count_tokens(request)


async def test_call_arguments_reach_the_template_as_what_they_mean(script: Script) -> None:
    template = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments.zone }}{% endfor %}{% endfor %}"
    engine = script("K", "Hel", "lo", END, template=template)
    history = [user("When?"), Message("assistant", (ToolCall("1", "now", {"zone": "K"}),))]
    assert text(await collect(engine, Request(history, settings=GREEDY))) == "Hello"


async def test_a_prompt_longer_than_the_context_is_said(random_model: str) -> None:
    engine = Transformers(random_model, context=64)
    assert await engine.context_length() == 64
    with pytest.raises(ContextOverflow, match="tokens long, and the context of .* has 64"):
        await collect(engine, ask("x" * 64))
    chunks = await collect(engine, ask("x", max_tokens=1000))  # the answer fills what is left, and no more
    assert chunks[-1].finish_reason == "length" and chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 64


async def test_an_agent_runs_the_call_that_the_model_wrote(script: Script) -> None:
    def now() -> str:
        """The time."""
        return "12:00"

    agent = Agent(model=script("\n", CALL, END), tools=[now], limits=Limits(max_turns=1))
    result = await agent.run("When?")
    assert [r.content for m in result.messages for r in m.results] == ["12:00"]


async def test_guided_text_is_valid_against_the_schema_whatever_the_model_wants(random_model: str) -> None:
    pytest.importorskip("xgrammar")
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Köln", "Paris"]}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"],
        "additionalProperties": False,
    }
    engine = Transformers(random_model)
    chunks = await collect(engine, replace(ask(max_tokens=80), schema=schema))
    value = json.loads(text(chunks))
    assert value["city"] in ("Köln", "Paris") and isinstance(value["sunny"], bool) and len(value) == 2
    assert chunks[-1].finish_reason == "stop"


async def test_guidance_leaves_the_thoughts_alone(script: Script) -> None:
    pytest.importorskip("xgrammar")
    engine = script("\n", THINK, "Well", CLOSE, "Hel", "lo", END)
    chunks = await collect(engine, replace(ask(thinking=True), schema={"const": "Hello"}))
    assert (reasoning(chunks), text(chunks)) == ("Well", '"Hello"')


async def test_a_model_that_is_not_there_is_said(hf: Any, tmp_path: Path) -> None:
    for nowhere in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelNotFound, match="no model that transformers can load .* safetensors"):
            await collect(Transformers(str(nowhere)), ask())


async def test_weights_that_are_not_there_are_said(random_model: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((Path(random_model) / "config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((Path(random_model) / "tokenizer.json").read_bytes())
    with pytest.raises(EngineError, match="transformers cannot run .* on cpu: .*safetensors"):
        await collect(Transformers(str(tmp_path), device="cpu"), ask())


async def test_a_conversation_the_template_refuses_is_said(script: Script) -> None:
    engine = script("\n", END, template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(EngineError, match="chat template .* roles must alternate"):
        await collect(engine, ask())


def test_without_the_packages_the_extra_is_named() -> None:
    program = (
        "import sys, anyio; sys.modules['torch'] = None\n"
        "from agentkit import EngineError\n"
        "from agentkit.runtime.transformers import Transformers\n"
        "try: anyio.run(Transformers('any').context_length)\n"
        "except EngineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'agentkit[transformers]'" in done.stdout
