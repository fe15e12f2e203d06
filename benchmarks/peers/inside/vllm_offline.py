"""vLLM in process: `vllm_offline.py FOLDER`, in its own environment."""

from __future__ import annotations

import sys

from loop import protocol, serve
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    answers = protocol()
    engine = LLM(
        model=sys.argv[1],
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=16,
        enable_prefix_caching=False,
        generation_config="vllm",
        seed=0,
    )

    def complete(prompts: list[list[int]], tokens: int) -> None:
        settings = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        made = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        counts = [len(answer.outputs[0].token_ids) for answer in made]
        assert counts == [tokens] * len(prompts), f"{counts} tokens"

    serve(complete, answers)
