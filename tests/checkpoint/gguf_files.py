"""Small GGUF files for the tests, written by gguf's own writer."""

from pathlib import Path

import numpy as np

LLAMA_METADATA = {
    "context_length": 128,
    "embedding_length": 256,
    "block_count": 2,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10_000.0,
}


def llama_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of the model that LLAMA_METADATA describes, by their GGUF names, in float32."""
    rng = np.random.default_rng(seed)
    shapes = {"token_embd": (64, 256), "output_norm": (256,)}
    for n in range(2):
        layer = {"attn_norm": (256,), "ffn_norm": (256,), "attn_q": (256, 256), "attn_k": (128, 256)}
        layer |= {"attn_v": (128, 256), "attn_output": (256, 256)}
        layer |= {"ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}
        shapes |= {f"blk.{n}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, *, arch="llama", metadata=None, tensors=None, kind="F32", tokenizer=None) -> Path:
    """Write a GGUF file, its matrices quantized as `kind` says. `metadata` changes LLAMA_METADATA; None drops a key."""
    import gguf

    kind = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in (LLAMA_METADATA | (metadata or {})).items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
            add[type(value)](f"{arch}.{key}", value)
    for key, value in (tokenizer or {}).items():
        add = {int: writer.add_uint32, bool: writer.add_bool, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"tokenizer.ggml.{key}", value)
    for name, tensor in (llama_tensors() if tensors is None else tensors).items():
        if tensor.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GPT2_TOKENS = [
    "<|start|>",
    "<|im_end|>",
    *"abcdefghijklmnopqrstuvwxyz0123456789",
    "Ġ",
    "Ċ",
    "he",
    "ll",
    "hell",
    "hello",
]
GPT2_TOKENS += ["Ġw", "or", "orld", "ld", "."] + [f"<unused{n}>" for n in range(15)]
GPT2_TOKENIZER = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": GPT2_TOKENS,
    "token_type": [3, 3, *[1] * (len(GPT2_TOKENS) - 2)],
    "merges": ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "l d", "or ld"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "add_bos_token": False,
}
