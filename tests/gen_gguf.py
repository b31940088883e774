#!/usr/bin/env python3
"""Writes a tiny llama-architecture GGUF with random weights and a byte-level BPE tokenizer: gen_gguf.py OUT [SEED [bytes]]

It talks nonsense, but through every part of the engine: grouped-query attention, tied embeddings, merges, ChatML tokens, and all
weight formats that the engine reads. Special tokens have zero embeddings, so that greedy decoding never ends early.
With "bytes" there are no merges: a token is a byte, and any output can be put into a prompt again. Only the standard library is used."""
import random
import struct
import sys

EMBD, HEADS, KV_HEADS, FF, LAYERS, CONTEXT = 256, 4, 2, 512, 3, 8192
F32, F16, Q4_0, Q4_1, Q8_0, Q6_K, BF16 = 0, 1, 2, 3, 8, 14, 30
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "i n", "Ġ a", "Ġt he", "in g", "e r", "o n", "Ġ s", "a t", "Ġ Ġ", "Ġa n", "Ġan d"]


def byte_chars():
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + rest.index(b)) for b in range(256)]


def weights(rnd, kind, n, std):
    """n random weights of about this standard deviation, as the bytes of a tensor"""
    half = lambda x: struct.pack("<e", x)
    if kind == F32:
        return struct.pack("<%df" % n, *(rnd.gauss(0, std) for _ in range(n)))
    if kind == F16:
        return struct.pack("<%de" % n, *(rnd.gauss(0, std) for _ in range(n)))
    if kind == BF16:
        return b"".join(struct.pack("<f", rnd.gauss(0, std))[2:] for _ in range(n))
    if kind == Q4_0:
        return b"".join(half(std / 4.6) + rnd.randbytes(16) for _ in range(n // 32))
    if kind == Q4_1:
        return b"".join(half(std / 4.6) + half(-7.5 * std / 4.6) + rnd.randbytes(16) for _ in range(n // 32))
    if kind == Q8_0:
        return b"".join(half(std / 74) + rnd.randbytes(32) for _ in range(n // 32))
    scales = lambda: bytes(rnd.randrange(8, 24) for _ in range(16))
    return b"".join(rnd.randbytes(192) + scales() + half(std / 300) for _ in range(n // 256))


def string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def entry(key, kind, value):
    code = {"u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8}
    pack = {"u32": lambda v: struct.pack("<I", v), "i32": lambda v: struct.pack("<i", v), "f32": lambda v: struct.pack("<f", v),
            "bool": lambda v: struct.pack("<B", v), "str": string}
    if isinstance(value, list):
        return string(key) + struct.pack("<IIQ", 9, code[kind], len(value)) + b"".join(map(pack[kind], value))
    return string(key) + struct.pack("<I", code[kind]) + pack[kind](value)


def main():
    rnd = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    merges = [] if sys.argv[3:] == ["bytes"] else MERGES
    tokens = SPECIALS + byte_chars() + [m.replace(" ", "") for m in merges]
    dim = EMBD // HEADS
    metadata = [
        entry("general.architecture", "str", "llama"), entry("general.name", "str", "tiny random"),
        entry("llama.block_count", "u32", LAYERS), entry("llama.context_length", "u32", CONTEXT),
        entry("llama.embedding_length", "u32", EMBD), entry("llama.feed_forward_length", "u32", FF),
        entry("llama.attention.head_count", "u32", HEADS), entry("llama.attention.head_count_kv", "u32", KV_HEADS),
        entry("llama.rope.dimension_count", "u32", dim), entry("llama.rope.freq_base", "f32", 10000.0),
        entry("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        entry("tokenizer.ggml.model", "str", "gpt2"), entry("tokenizer.ggml.pre", "str", "smollm"),
        entry("tokenizer.ggml.tokens", "str", tokens),
        entry("tokenizer.ggml.token_type", "i32", [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS))),
        entry("tokenizer.ggml.merges", "str", merges), entry("tokenizer.ggml.eos_token_id", "u32", 2),
        entry("tokenizer.ggml.bos_token_id", "u32", 1), entry("tokenizer.ggml.add_bos_token", "bool", 0),
    ]
    tensors = []  # name, dims, type, bytes
    ones = lambda: struct.pack("<%df" % EMBD, *(1 + rnd.gauss(0, 0.1) for _ in range(EMBD)))
    embd = bytes(EMBD // 32 * 34 * len(SPECIALS)) + weights(rnd, Q8_0, EMBD * (len(tokens) - len(SPECIALS)), 0.3)
    tensors.append(("token_embd.weight", (EMBD, len(tokens)), Q8_0, embd))
    tensors.append(("output_norm.weight", (EMBD,), F32, ones()))
    kinds = [Q4_1, Q6_K, F16, BF16, Q4_0, Q8_0, F32]
    for i in range(LAYERS):
        shapes = [("attn_q", EMBD, EMBD), ("attn_k", EMBD, KV_HEADS * dim), ("attn_v", EMBD, KV_HEADS * dim), ("attn_output", EMBD, EMBD),
                  ("ffn_gate", EMBD, FF), ("ffn_up", EMBD, FF), ("ffn_down", FF, EMBD)]
        for k, (name, n_in, n_out) in enumerate(shapes):
            kind = kinds[(i + k) % len(kinds)]
            tensors.append(("blk.%d.%s.weight" % (i, name), (n_in, n_out), kind, weights(rnd, kind, n_in * n_out, 1.5 * n_in ** -0.5)))
        for name in ("attn_norm", "ffn_norm"):
            tensors.append(("blk.%d.%s.weight" % (i, name), (EMBD,), F32, ones()))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata)
    data = b""
    for name, dims, kind, body in tensors:
        head += string(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, kind, len(data))
        data += body + bytes(-len(body) % 32)
    with open(sys.argv[1], "wb") as f:
        f.write(head + bytes(-len(head) % 32) + data)


main()
