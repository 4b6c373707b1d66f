"""Make two small models with random weights, in vLLM's environment: ``make_models.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

TEXTS = ["the quick brown fox jumps over the lazy dog", "load balancer replica queue"]
SPECIAL = ["<s>", "</s>", "<pad>"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
CONTEXT = 16384


def tokenizer() -> Tokenizer:
    """Bytes, and a few words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return made


def for_vllm(folder: Path, tokens: Tokenizer) -> None:
    """A Llama of 0.4 million parameters."""
    folder.mkdir(parents=True)
    tokens.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True)),
        "model_max_length": CONTEXT,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=tokens.get_vocab_size(), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, bos_token_id=0,
        eos_token_id=1, pad_token_id=2, dtype="float32",
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)


def for_llama_cpp(path: Path, tokens: Tokenizer) -> None:
    """A larger one, so that loading it and generating with it can be watched."""
    width, inner, heads, kv_heads, layers = 512, 1536, 8, 2, 12
    chance = np.random.default_rng(0)
    words = sorted(tokens.get_vocab().items(), key=lambda pair: pair[1])
    merges = json.loads(tokens.to_str())["model"]["merges"]
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_rope_dimension_count(width // heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(len(words))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([word for word, _ in words])
    out.add_token_types(
        [gguf.TokenType.CONTROL if word in SPECIAL else gguf.TokenType.NORMAL for word, _ in words]
    )
    out.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_pad_token_id(2)
    out.add_chat_template(TEMPLATE)

    def weights(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else chance.normal(0, 0.02, shape)
        out.add_tensor(f"{name}.weight", values.astype(np.float32))

    weights("token_embd", len(words), width)
    weights("output_norm", width)
    weights("output", len(words), width)
    for layer in range(layers):
        block = f"blk.{layer}"
        weights(f"{block}.attn_norm", width)
        weights(f"{block}.attn_q", width, width)
        weights(f"{block}.attn_k", width * kv_heads // heads, width)
        weights(f"{block}.attn_v", width * kv_heads // heads, width)
        weights(f"{block}.attn_output", width, width)
        weights(f"{block}.ffn_norm", width)
        weights(f"{block}.ffn_gate", inner, width)
        weights(f"{block}.ffn_up", inner, width)
        weights(f"{block}.ffn_down", width, inner)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = tokenizer()
    for_vllm(target / "llama", made)
    for_llama_cpp(target / "llama.gguf", made)
