"""The demo model as vLLM and transformers read it: its GGUF dequantised to bfloat16 safetensors, with its tokenizer.

    python benchmarks/demo_safetensors.py DIRECTORY        # 3.6 GB; does nothing where DIRECTORY is complete
    python benchmarks/demo_safetensors.py DIRECTORY --chat-template tests/e2e/qwen3_chat_template.jinja

Needs `gguf` and numpy, in any environment. Each byte is the same wherever it is made: the files' SHA-256 stand below, and
a file that comes out otherwise is not kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize

SHA256 = {
    "config.json": "7751da2fa4f2e2f8366a19a29009b72f15c20f552d79ad9e0afa8436fd7b6f41",
    "generation_config.json": "eeb1d97bb27a8b6ea67b091053335304203f879d83e11aa17ae219939058b7fb",
    "tokenizer.json": "2e0d1eda339cd255951ae0288de62a7c26f4ed83cf4ccf6112aff7ed194193a5",
    "tokenizer_config.json": "6dd6bb0b5ce1fcc7191f932c62a97c929636c8bf73258511e5f3d9abbeeaa4f9",
    "model.safetensors": "d343342ac37f7e3a0e3977da4b33d4b64b6a9d428c0cf3137979440602814ba9",  # last: the longest to make
}
SIZE = 3_554_214_752  # bytes of model.safetensors
TEMPLATE = "chat_template.jinja"  # where it stands, it goes before the template in tokenizer_config.json

END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
LAST_SPECIAL = 151656  # the added tokens after it are text to a reader: <tool_call>, <|file_sep|>
# how Qwen's tokenizer cuts text into words before the merges
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RENAMED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *block, part, kind = gguf_name.split(".")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{RENAMED[part]}.{kind}"


def config(gguf: GGUFReader) -> dict[str, Any]:
    def value(key: str) -> Any:
        return gguf.fields["qwen2." + key].contents()

    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0",  # whose words these are; without it, one warns of another model's tokenizer
        "vocab_size": len(gguf.fields["tokenizer.ggml.tokens"].data),
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "hidden_act": "silu",
        "max_position_embeddings": value("context_length"),
        "rope_theta": value("rope.freq_base"),
        "rms_norm_eps": float(f"{value('attention.layer_norm_rms_epsilon'):.6g}"),  # a float32 in the GGUF
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": gguf.fields["tokenizer.ggml.bos_token_id"].contents(),
        "eos_token_id": gguf.fields["tokenizer.ggml.eos_token_id"].contents(),
    }


def generation_config(gguf: GGUFReader) -> dict[str, Any]:
    end, pad = (gguf.fields[f"tokenizer.ggml.{kind}_token_id"].contents() for kind in ("eos", "padding"))
    return {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}


def tokenizer(gguf: GGUFReader) -> dict[str, Any]:
    """tokenizer.json: Qwen's byte-level BPE from the GGUF's own vocabulary and merges."""
    tokens = gguf.fields["tokenizer.ggml.tokens"].contents()
    kinds = gguf.fields["tokenizer.ggml.token_type"].contents()
    added = (TokenType.CONTROL, TokenType.USER_DEFINED)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": i <= LAST_SPECIAL}
            for i, token in enumerate(tokens)
            if kinds[i] in added
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
                bytes_,
            ],
        },
        "post_processor": bytes_,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens) if kinds[i] == TokenType.NORMAL},
            "merges": gguf.fields["tokenizer.ggml.merges"].contents(),
        },
    }


def tokenizer_config(gguf: GGUFReader) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.fields["qwen2.context_length"].contents(),
        "chat_template": gguf.fields["tokenizer.chat_template"].contents(),
    }


def bfloat16(tensor: ReaderTensor) -> bytes:
    """The tensor's values, each rounded to the nearest bfloat16 (ties to even), little-endian."""
    bits = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype="<f4").view("<u4")
    rounded: bytes = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2").tobytes()
    return rounded


def weights(gguf: GGUFReader) -> Iterator[bytes]:
    """model.safetensors, piece by piece: no more than one tensor is in memory."""
    tensors = sorted(gguf.tensors, key=lambda t: name(t.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        size = 2 * int(tensor.n_elements)
        shape = [int(n) for n in reversed(tensor.shape)]
        header[name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors:
        yield bfloat16(tensor)


def dumped(value: Any) -> Iterator[bytes]:
    yield json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def write(path: Path, pieces: Iterator[bytes]) -> None:
    part, digest = path.with_name(path.name + ".part"), hashlib.sha256()
    try:
        with open(part, "wb") as out:
            for piece in pieces:
                digest.update(piece)
                out.write(piece)
        print(f"{digest.hexdigest()}  {path.name}", flush=True)
        if digest.hexdigest() != SHA256[path.name]:
            sys.exit(f"{path.name} should be {SHA256[path.name]}: is the GGUF the demo model's?")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def complete(directory: Path) -> bool:
    """Whether every file is there and as it should be; the weights, which were checked when made, by their size."""
    for file, sha256 in SHA256.items():
        path = directory / file
        if not path.is_file():
            return False
        if file == "model.safetensors":
            if path.stat().st_size != SIZE:
                return False
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The demo model as a directory that vLLM and transformers read."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--gguf", type=Path, help="the demo model's file; without it, agentkit is asked for it"
    )
    parser.add_argument(
        "--chat-template", type=Path, help="a Jinja file, instead of the model's own template"
    )
    options = parser.parse_args()
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)

    if not complete(directory):
        if options.gguf is None:
            from agentkit.runtime.demo import demo_model  # the environment may lack agentkit

            options.gguf = demo_model(print)
        gguf = GGUFReader(options.gguf)
        for make in (config, generation_config, tokenizer, tokenizer_config):
            write(directory / f"{make.__name__}.json", dumped(make(gguf)))
        write(directory / "model.safetensors", weights(gguf))
    if options.chat_template:
        (directory / TEMPLATE).write_bytes(options.chat_template.read_bytes())
    else:
        (directory / TEMPLATE).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
