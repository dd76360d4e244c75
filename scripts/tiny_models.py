"""Tiny random models of many causal architectures, by name.

Windows are shorter than the prompts, hybrids have two layers of each kind, mixtures four experts
of which two are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

HEAD = {"head_dim": 16}
WINDOW = {"sliding_window": 8}
ALTERNATING = {
    **WINDOW,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
HYBRID = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
SHORT_CONVOLUTION = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
STATE = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_chunk_size": 16}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
}
GROUPED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 16,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "AFMoE": ("afmoe", {**ALTERNATING, **EXPERTS, **HEAD, "num_dense_layers": 1}),
    "Apertus": ("apertus", {}),
    "Arcee": ("arcee", {}),
    "Bamba": ("bamba", {**STATE, "num_hidden_layers": 4, "attn_layer_indices": [1, 3]}),
    "BioGPT": ("biogpt", {}),
    "BitNet": ("bitnet", {}),
    "BLOOM (ALiBi)": ("bloom", {}),
    "CodeGen": ("codegen", {"rotary_dim": 8}),
    "Cohere": ("cohere", {}),
    "Cohere 2, window": ("cohere2", {**ALTERNATING, **HEAD}),
    "CTRL": ("ctrl", {"dff": 64}),
    "CWM, window": ("cwm", {**ALTERNATING, **HEAD}),
    "DBRX": (
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "DeepSeek-V2": ("deepseek_v2", {**GROUPED, **LATENT}),
    "DeepSeek-V3": ("deepseek_v3", {**GROUPED, **LATENT}),
    "DiffLlama": ("diffllama", HEAD),
    "Doge": ("doge", {}),
    "dots.llm1": ("dots1", GROUPED),
    "ERNIE 4.5": ("ernie4_5", HEAD),
    "ERNIE 4.5 MoE": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_layer_start_index": 1,
        },
    ),
    "EXAONE 4, window": ("exaone4", ALTERNATING),
    "Falcon": ("falcon", {}),
    "Falcon (ALiBi)": ("falcon", {"alibi": True}),
    "Falcon-H1": ("falcon_h1", {**STATE, "mamba_d_ssm": 128}),
    "Falcon-Mamba": ("falcon_mamba", {"state_size": 8}),
    "FlexOlmo": ("flex_olmo", EXPERTS),
    "Gemma": ("gemma", HEAD),
    "Gemma 2, window": ("gemma2", {**ALTERNATING, **HEAD}),
    "Gemma 3": ("gemma3_text", {**ALTERNATING, **HEAD, "sliding_window": 512}),
    "Gemma 3, window": ("gemma3_text", {**ALTERNATING, **HEAD}),
    "Gemma 3n, window": (
        "gemma3n_text",
        {
            **ALTERNATING,
            **HEAD,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 768,
            "laurel_rank": 8,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": None,
        },
    ),
    "Gemma 4, window": (
        "gemma4_text",
        {
            **ALTERNATING,
            **HEAD,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 768,
            "num_kv_shared_layers": 0,
        },
    ),
    "GLM": ("glm", HEAD),
    "GLM-4": ("glm4", HEAD),
    "GLM-4 MoE": ("glm4_moe", {**GROUPED, **HEAD}),
    "GPT": ("openai-gpt", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-BigCode": ("gpt_bigcode", {}),
    "GPT-J": ("gptj", {"rotary_dim": 8}),
    "GPT-Neo, window": (
        "gpt_neo",
        {
            "num_hidden_layers": 4,
            "num_layers": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
        },
    ),
    "GPT-NeoX": ("gpt_neox", {}),
    "gpt-oss, window": ("gpt_oss", {**ALTERNATING, **EXPERTS, **HEAD}),
    "Granite": ("granite", {}),
    "GraniteMoE": ("granitemoe", EXPERTS),
    "GraniteMoE hybrid": ("granitemoehybrid", {**HYBRID, **STATE, **EXPERTS}),
    "GraniteMoE shared": ("granitemoeshared", EXPERTS),
    "Helium": ("helium", HEAD),
    "HunYuan": ("hunyuan_v1_dense", HEAD),
    "HunYuan MoE": ("hunyuan_v1_moe", {**HEAD, "num_experts": 4, "moe_topk": [2, 2]}),
    "Jais 2": ("jais2", HEAD),
    "Jamba": (
        "jamba",
        {
            **EXPERTS,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "JetMoE": ("jetmoe", {"kv_channels": 16, "num_local_experts": 4}),
    "Kimi Linear": (
        "kimi_linear",
        {
            **HYBRID,
            **LATENT,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
        },
    ),
    "LFM2": ("lfm2", SHORT_CONVOLUTION),
    "LFM2-MoE": ("lfm2_moe", {**SHORT_CONVOLUTION, **EXPERTS, "num_dense_layers": 1}),
    "Llama": ("llama", {}),
    "Llama, deaf to masks": ("llama", {}),
    "Llama, deaf to positions": ("llama", {}),
    "Llama 4, chunks": (
        "llama4_text",
        {
            **HEAD,
            "num_hidden_layers": 4,
            "layer_types": ["chunked_attention", "full_attention"] * 2,
            "no_rope_layers": [1, 0] * 2,
            "attention_chunk_size": 8,
            "num_local_experts": 4,
            "moe_layers": [1, 3],
            "intermediate_size_mlp": 64,
        },
    ),
    "LongCat-Flash": (
        "longcat_flash",
        {
            **LATENT,
            "num_layers": 2,
            "head_dim": 8,
            "ffn_hidden_size": 64,
            "expert_ffn_hidden_size": 32,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    ),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba-2": (
        "mamba2",
        {"num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    ),
    "MiniCPM3": ("minicpm3", LATENT),
    "MiniMax": ("minimax", {**HYBRID, **EXPERTS, **HEAD, "block_size": 16}),
    "MiniMax-M2": ("minimax_m2", {**EXPERTS, **HEAD}),
    "Ministral, window": ("ministral", {**ALTERNATING, **HEAD}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral, window": ("mistral", WINDOW),
    "Mixtral": ("mixtral", EXPERTS),
    "ModernBERT decoder, window": ("modernbert-decoder", {**ALTERNATING, "local_attention": 16}),
    "MPT (ALiBi)": ("mpt", {}),
    "NanoChat": ("nanochat", {}),
    "Nemotron": ("nemotron", HEAD),
    "Nemotron-H": (
        "nemotron_h",
        {
            **HEAD,
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3, window": ("olmo3", ALTERNATING),
    "OLMo hybrid": ("olmo_hybrid", {**HYBRID, **LINEAR}),
    "OLMoE": ("olmoe", EXPERTS),
    "OPT": ("opt", {"word_embed_proj_dim": 64, "ffn_dim": 64}),
    "Persimmon": ("persimmon", {}),
    "Phi": ("phi", {}),
    "Phi-3": ("phi3", {}),
    "Phi-3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 16, "rope_parameters": LONGROPE},
    ),
    "PhiMoE": ("phimoe", EXPERTS),
    "Qwen2": ("qwen2", {}),
    "Qwen2, window": ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "Qwen2-MoE": ("qwen2_moe", EXPERTS),
    "Qwen3": ("qwen3", HEAD),
    "Qwen3-MoE": ("qwen3_moe", {**EXPERTS, **HEAD}),
    "Qwen3-Next": ("qwen3_next", {**HYBRID, **LINEAR, **EXPERTS, **HEAD}),
    "Qwen3.5": ("qwen3_5_text", {**HYBRID, **LINEAR, **HEAD}),
    "RecurrentGemma, window": (
        "recurrent_gemma",
        {**HEAD, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8},
    ),
    "RWKV": ("rwkv", {"attention_hidden_size": 64}),
    "Seed-OSS": ("seed_oss", HEAD),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "StableLM": ("stablelm", {}),
    "StarCoder2": ("starcoder2", {}),
    "StarCoder2, window": ("starcoder2", WINDOW),
    "VaultGemma, window": ("vaultgemma", {**ALTERNATING, **HEAD}),
    "XGLM": ("xglm", {"d_model": 64, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "xLSTM": (
        "xlstm",
        {"num_heads": 2, "num_blocks": 2, "chunk_size": 16, "qk_dim_factor": 1.0},
    ),
    "Zamba": (
        "zamba",
        {
            "num_hidden_layers": 6,
            "attn_layer_period": 3,
            "attn_layer_offset": 2,
            "attention_head_dim": 32,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
        },
    ),
    "Zamba2": (
        "zamba2",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "kv_channels": 16,
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 32,
            "chunk_size": 16,
        },
    ),
}
"""Name → (transformers' model type, what its configuration has beside `make_tiny`'s sizes)."""

PLANTED = {"Llama, deaf to masks": "attention_mask", "Llama, deaf to positions": "position_ids"}
"""Models that take an argument and ignore it."""


def make_tiny(name: str, vocabulary: int) -> nn.Module:
    """A random float32 model of some 64 dimensions, in evaluation mode."""
    kind, options = ARCHITECTURES[name]
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(kind, **(sizes | options))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > 200 * (vocabulary + 10_000):
        raise ValueError(f"must be tiny, got {parameters:,} parameters. Set its own sizes.")
    model = AutoModelForCausalLM.from_config(config).float().eval()
    if name in PLANTED:
        model.register_forward_pre_hook(_Without(PLANTED[name]), with_kwargs=True)
    return model


class _Without:
    """A hook that takes an argument away, and holds no model, so that copies are deaf too."""

    def __init__(self, argument: str) -> None:
        self.argument = argument

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {key: value for key, value in kwargs.items() if key != self.argument}
