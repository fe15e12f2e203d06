"""Tiny random checkpoints of every family, complete enough to serve: config, weights, tokenizer, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from inferloom.formats.checkpoint import Checkpoint

Family = Literal[
    "llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3", "granite", "smollm3", "olmo2",
    "phi3", "gpt2", "gpt_neox", "stablelm", "falcon", "opt", "cohere", "bert", "roberta",
]  # fmt: skip
DECODERS: tuple[Family, ...] = (
    "llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3", "granite", "smollm3", "olmo2",
    "phi3", "gpt2", "gpt_neox",
)  # fmt: skip
FOREIGN: tuple[Family, ...] = ("stablelm", "falcon", "opt", "cohere")  # run by transformers' own modules
ENCODERS: tuple[Family, ...] = ("bert", "roberta")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Of each family: the prefix of its classes in `transformers`, and what sets its small config apart from a Llama's.
_PECULIARITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 48, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56, "mlp_only_layers": [2]}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True, "head_dim": 32}),
    "gemma2": ("Gemma2", {"head_dim": 32, "sliding_window": 40, "query_pre_attn_scalar": 20}),
    "gemma3": ("Gemma3Text", {"head_dim": 32, "sliding_window": 40, "query_pre_attn_scalar": 20, "sliding_window_pattern": 2}),
    "granite": ("Granite", {"embedding_multiplier": 6.0, "residual_multiplier": 0.5, "attention_multiplier": 0.11, "logits_scaling": 4.0}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "olmo2": ("Olmo2", {"tie_word_embeddings": False}),
    "phi3": ("Phi3", {"tie_word_embeddings": False}),
    "gpt2": ("GPT2", {}),
    "gpt_neox": ("GPTNeoX", {"tie_word_embeddings": False}),
    "stablelm": ("StableLm", {"tie_word_embeddings": False, "use_qkv_bias": True}),
    "falcon": ("Falcon", {"tie_word_embeddings": False, "multi_query": True}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "cohere": ("Cohere", {}),
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {}),
}  # fmt: skip
_CLASSES = {"gemma3": "Gemma3ForCausalLM", "gpt2": "GPT2LMHeadModel"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    'user assistant system tool name arguments true false null {} [] : , "',
    "0 1 2 3 4 5 6 7 8 9 10 11 12 100 1000",
)


def make_checkpoint(
    folder: Path,
    family: Family,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    max_positions: int = 512,
    **overrides: Any,
) -> Checkpoint:
    """Write a random checkpoint of the family to `folder` and return it. `overrides` are keys of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    if family in ENCODERS:
        tokenizer = _write_encoder_tokenizer(folder, family)
        extra = {"sentence_bert_config.json": {"max_seq_length": max_positions // 2, "do_lower_case": False}}
    else:
        tokenizer = _write_tokenizer(folder)
        extra = {}
    model = _build(family, tokenizer.get_vocab_size(), seed, layers, max_positions, overrides)
    model.to(dtype).save_pretrained(folder)
    if family not in ENCODERS:
        end = tokenizer.token_to_id("<|im_end|>")
        extra["generation_config.json"] = {
            "eos_token_id": end,
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        }
    for name, value in extra.items():
        (folder / name).write_text(json.dumps(value))
    return Checkpoint(
        source=str(folder),
        name=folder.name,
        folder=str(folder.resolve()),
        weights=(str((folder / "model.safetensors").resolve()),),
        format="safetensors",
    )


def _build(
    family: Family, vocab: int, seed: int, layers: int, positions: int, overrides: dict[str, Any]
) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        # Wide enough that the best token of a random model leads clearly.
        "initializer_range": 0.2,
    }
    if family not in ENCODERS:
        sizes |= {
            "num_key_value_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        }
    name, own = _PECULIARITIES[family]
    if family == "roberta":
        own = {"max_position_embeddings": positions + 2, "type_vocab_size": 1, "pad_token_id": 1}
    config = getattr(transformers, f"{name}Config")(**(sizes | own | overrides))
    kind = getattr(
        transformers, f"{name}Model" if family in ENCODERS else _CLASSES.get(family, f"{name}ForCausalLM")
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
        # Norms and biases start as ones and zeros; make them say something, so that a wrong one shows.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def _write_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level BPE that can encode any text, with ChatML's special tokens as ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def _write_encoder_tokenizer(folder: Path, family: Family) -> Tokenizer:
    """Words and single characters between the family's start and end tokens."""
    from tokenizers import processors

    start, pad, end, unknown = (
        ("[CLS]", "[PAD]", "[SEP]", "[UNK]") if family == "bert" else ("<s>", "<pad>", "</s>", "<unk>")
    )
    words = sorted(
        {word for sentence in SENTENCES for word in sentence.split()} | {chr(c) for c in range(33, 127)}
    )
    vocab = {token: i for i, token in enumerate(dict.fromkeys((start, pad, end, unknown, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (start, pad, end, unknown)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocab[start]), (end, vocab[end])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": start,
        "pad_token": pad,
        "sep_token": end,
        "unk_token": unknown,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer
