"""The families of decoders: what each one's config.json means, and where its checkpoint keeps which tensor.

A family is data: a function from config.json to `DecoderSpec`, and `Names`. To add one, write both in a file of its own
or its kin, and enter it below; the forward pass is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inferloom.errors import Unsupported
from inferloom.models.config_json import architecture_of
from inferloom.models.families import gemma, gpt, granite, llama, olmo, phi, qwen, smollm
from inferloom.models.families.names import Names
from inferloom.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Family:
    spec: Callable[[dict[str, Any]], DecoderSpec]
    names: Names


DECODER_FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(llama.llama, llama.NAMES),
    "MistralForCausalLM": Family(llama.mistral, llama.NAMES),
    "Qwen2ForCausalLM": Family(qwen.qwen2, llama.NAMES),
    "Qwen3ForCausalLM": Family(qwen.qwen3, llama.NAMES),
    "Qwen2MoeForCausalLM": Family(qwen.qwen2_moe, qwen.MOE_NAMES),
    "Qwen3MoeForCausalLM": Family(qwen.qwen3_moe, qwen.MOE_NAMES),
    "Gemma2ForCausalLM": Family(gemma.gemma2, gemma.NAMES),
    "Gemma3ForCausalLM": Family(gemma.gemma3, gemma.NAMES),
    "GraniteForCausalLM": Family(granite.granite, llama.NAMES),
    "SmolLM3ForCausalLM": Family(smollm.smollm3, llama.NAMES),
    "Olmo2ForCausalLM": Family(olmo.olmo2, olmo.NAMES),
    "Phi3ForCausalLM": Family(phi.phi3, phi.NAMES),
    "GPT2LMHeadModel": Family(gpt.gpt2, gpt.GPT2_NAMES),
    "GPTNeoXForCausalLM": Family(gpt.gpt_neox, gpt.NEOX_NAMES),
}
ENCODER_FAMILIES = ("BertModel", "RobertaModel", "XLMRobertaModel")


def spec_of(config: dict[str, Any]) -> DecoderSpec:
    """What `DecoderSpec.from_config` answers."""
    architecture = architecture_of(config)
    family = DECODER_FAMILIES.get(architecture)
    if family is None:
        raise unknown_architecture(architecture)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unnamed")
        raise Unsupported(f"a checkpoint quantised with {method}", "only float weights can be loaded yet")
    return family.spec(config)


def unknown_architecture(name: str) -> Unsupported:
    """The error that names what this engine runs."""
    known = ", ".join((*DECODER_FAMILIES, *ENCODER_FAMILIES))
    return Unsupported(
        f"the architecture {name}",
        f"this engine runs {known}, and what transformers has as a causal language model",
    )
