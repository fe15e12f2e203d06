"""OpenVINO GenAI's continuous batching in process: `openvino_pipeline.py FOLDER`, in its own environment."""

from __future__ import annotations

import sys

import numpy
import openvino
import openvino_genai
from loop import protocol, serve

THREADS = 2
REQUESTS = 16
CACHE_GIB = 1

if __name__ == "__main__":
    answers = protocol()
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_seqs = REQUESTS
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        sys.argv[1], scheduler, "CPU", {"INFERENCE_NUM_THREADS": THREADS}
    )

    def complete(prompts: list[list[int]], tokens: int) -> None:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = tokens
        settings.ignore_eos = True
        settings.do_sample = False
        inputs = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        made = pipeline.generate(inputs, [settings] * len(prompts))
        counts = [len(answer.m_generation_ids[0]) for answer in made]
        assert counts == [tokens] * len(prompts), f"{counts} tokens"

    serve(complete, answers)
