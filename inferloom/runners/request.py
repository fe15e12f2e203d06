"""From a generation request to what the engine is told: limits, end tokens, sampling, grammar."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from inferloom.errors import ContextLengthExceeded
from inferloom.runners.sampling import resolve
from inferloom.text.answer import AnswerPlan
from inferloom.text.tokenizer_files import GenerationDefaults
from inferloom.types import ChatMessage, Constraint, ExecuteBatch
from inferloom.worker.messages.requests import Generate, GrammarSpec


def generate(
    batch: ExecuteBatch,
    plan: AnswerPlan,
    *,
    number: int,
    limit: int,
    defaults: GenerationDefaults,
    ends: Iterable[int],
    seed: Callable[[], int],
) -> Generate:
    """The request as the engine takes it. `limit`: tokens of the context, prompt and answer together. `ends`: the
    model's end tokens. `seed` makes one where the request has none.

    Raises `ContextLengthExceeded`.
    """
    stops = batch.stop_token_ids if batch.ignore_eos else (*ends, *batch.stop_token_ids)
    given = batch.sampling.seed
    return Generate(
        id=number,
        prompt=plan.token_ids,
        max_tokens=allowed_tokens(
            len(plan.token_ids),
            batch.max_tokens,
            limit,
            prompt_field="prompt" if batch.messages is None else "messages",
        ),
        sampling=resolve(batch.sampling, defaults, seed=seed() if given is None else given),
        n=batch.n,
        stop_token_ids=list(stops),
        grammar=None if plan.constraint is None else as_grammar(plan.constraint),
        logprobs=-1 if batch.logprobs is None else batch.logprobs,
        prompt_logprobs=batch.echo and batch.logprobs is not None,
        priority=batch.priority,
    )


def allowed_tokens(prompt: int, asked: int | None, limit: int, *, prompt_field: str = "messages") -> int:
    """How many tokens may be generated: what was asked, else what the context has left. `prompt_field`: where the
    prompt stands in the request.

    Raises `ContextLengthExceeded` where prompt and answer do not fit.
    """
    if asked is None:
        if prompt >= limit:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens, but this model's context is {limit} tokens "
                "and must hold the answer too; shorten the prompt",
                param=prompt_field,
            )
        return limit - prompt
    if prompt + asked > limit:
        raise ContextLengthExceeded(
            f"{prompt} tokens of prompt and {asked} of answer are asked for, but this model's context is "
            f"{limit} tokens; shorten the prompt or lower max_tokens",
            param=prompt_field if prompt >= limit else "max_tokens",
        )
    return asked


def as_grammar(constraint: Constraint) -> GrammarSpec:
    """The constraint as the engine takes it: any JSON object is an object of any schema."""
    if constraint.kind == "json_object":
        return GrammarSpec("json_schema", '{"type":"object"}')
    return GrammarSpec(constraint.kind, constraint.value)


def with_system_prompt(batch: ExecuteBatch, prompt: str | None) -> ExecuteBatch:
    """The request with the model's own system prompt, where it brings none."""
    messages = batch.messages
    if prompt is None or messages is None or any(one.role in ("system", "developer") for one in messages):
        return batch
    return msgspec.structs.replace(batch, messages=(ChatMessage(role="system", content=prompt), *messages))


def text_length(batch: ExecuteBatch) -> int:
    """Characters that have to be tokenized."""
    if batch.messages is not None:
        return sum(len(message.content or "") for message in batch.messages)
    return len(batch.text or "")
