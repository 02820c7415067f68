"""What the probe of a server looks at, and what to change where it finds something. Words only."""

from __future__ import annotations

__all__ = ["CHECKS", "FIXES"]

# id -> what it is called in the table; the order is that of the report
CHECKS = {
    "server.reachable": "reachable",
    "server.key": "API key",
    "server.kind": "server",
    "server.models": "model",
    "server.context": "context length",
    "chat.whole": "answers whole",
    "chat.streamed": "answers streamed",
    "chat.system": "system messages",
    "stream.events": "event stream",
    "stream.incremental": "streams as it writes",
    "text.unicode": "Unicode",
    "finish.reason": "finish reason",
    "limits.max_tokens": "max_tokens",
    "limits.stop": "stop strings",
    "usage.whole": "usage",
    "usage.streamed": "usage, streamed",
    "usage.cached": "cached tokens",
    "thinking.switch": "thinking switch",
    "reasoning.out": "thoughts come out",
    "reasoning.in": "thoughts go in",
    "reasoning.answer": "answer is no thought",
    "tools.whole": "tools, whole",
    "tools.streamed": "tools, streamed",
    "tools.thinking": "tools, thinking on",
    "tools.arguments": "call arguments",
    "tools.ids": "call ids, indexes",
    "tools.parallel": "parallel calls",
    "tools.results": "tool results",
    "tools.strict": "strict tools",
    "tools.text": "calls as text",
    "schema.enforced": "structured output",
}

# check, or group:variant -> kind of server -> what to change; "" is for every other kind
_PARSER = {
    "vllm": "start it with --enable-auto-tool-choice --tool-call-parser hermes (qwen3_xml for Qwen3-Coder); where that is on, "
    "the model writes its calls in another form",
    "sglang": "start it with --tool-call-parser qwen25 (qwen3_coder for Qwen3-Coder)",
    "llama.cpp": "start llama-server with --jinja",
    "llama-cpp-python": "its server parses no calls; llama-server with --jinja does",
    "ollama": "take a model whose template has tools: `ollama show MODEL` lists it as a capability",
    "lmstudio": "take a model that LM Studio marks as trained for tool use",
    "mlx-lm": "take a model whose chat template has tools",
    "": "switch tool calling on (a tool-call parser) in the server",
}
_REASONING_PARSER = {
    "vllm": "start it with --reasoning-parser qwen3",
    "sglang": "start it with --reasoning-parser qwen3",
    "llama.cpp": "start llama-server with --jinja --reasoning-format deepseek",
}
FIXES: dict[str, dict[str, str]] = {
    "server.key": {"": "put the right key into AGENTKIT_API_KEY"},
    "server.context": {
        "vllm": "start it with a larger --max-model-len",
        "sglang": "start it with a larger --context-length",
        "llama.cpp": "start it with a larger --ctx-size",
        "llama-cpp-python": "start it with a larger --n_ctx",
        "ollama": "set OLLAMA_CONTEXT_LENGTH=16384 (it cuts longer prompts silently)",
        "lmstudio": "load the model with a longer context",
    },
    "chat.system": {"": "use a chat template that knows the system role"},
    "stream.events": {"": "look for a proxy in between, or update the server"},
    "stream.incremental": {"": "switch off buffering in the proxy in between (nginx: proxy_buffering off)"},
    "usage.cached": {
        "vllm": "start it with --enable-prefix-caching --enable-prompt-tokens-details",
        "sglang": "start it with --enable-cache-report (and without --disable-radix-cache)",
        "llama.cpp": "leave cache_prompt on",
    },
    "thinking.switch": {
        "ollama": "send reasoning_effort=none, or /no_think in the prompt",
        "lmstudio": "put /no_think into the prompt",
        "llama-cpp-python": "put /no_think into the prompt",
        "llama.cpp": "start llama-server with --jinja",
        "": "use the model's own chat template; or put /no_think into the prompt",
    },
    "reasoning.out": _REASONING_PARSER,
    "reasoning.in": {
        "vllm": "update vLLM, and use the model's own chat template",
        "llama.cpp": "start llama-server with --jinja",
        "": "use the model's own chat template",
    },
    "reasoning.answer": {
        "vllm": "drop --reasoning-parser (it does not fit this model), or set thinking off",
        "sglang": "drop --reasoning-parser (it does not fit this model), or set thinking off",
        "llama.cpp": "start llama-server with --reasoning-format none",
        "": "switch the server's reasoning parser off, or choose the one of this model",
    },
    "tools.whole": _PARSER,
    "tools.streamed": _PARSER,
    "tools.thinking": _PARSER,
    "tools:swallowed": {
        "vllm": "drop --reasoning-parser, or set thinking off: it takes the call for a thought",
        "sglang": "drop --reasoning-parser, or set thinking off: it takes the call for a thought",
        "": "switch the server's reasoning parser off, or set thinking off",
    },
    "tools:ignored": {
        "vllm": "use a chat template that renders tools (--chat-template)",
        "sglang": "use a chat template that renders tools (--chat-template)",
        "llama.cpp": "start llama-server with --jinja",
        "": "use a chat template that renders tools",
    },
    "tools.arguments": {"": "update the server"},
    "tools.ids": {"": "update the server"},
    "tools.parallel": {"": "update the server, or ask for one call at a time"},
    "tools.results": {"": "use a chat template that knows the tool role"},
    "schema.enforced": {
        "vllm": "update vLLM (structured outputs are on by default)",
        "sglang": "start it with --grammar-backend xgrammar",
        "": "agentkit then checks and asks again",
    },
}
