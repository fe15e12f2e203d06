"""Decoders that this engine does not know itself: `transformers`' own modules over our KV pages.

Slower than our decoder (every sequence is a pass of its own), and as right as `transformers` is: what a model computes is
left to its module; keys and values go to our pages, so that prefixes are shared, pages copied and sequences preempted as with
any other executor. Before a model is served, a few tokens are run over the pages and over `transformers`' own cache: a model
whose memory is more than keys and values is refused.
"""

from __future__ import annotations

import inspect
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from inferloom.errors import InvalidFormat, LoadFailed, Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import PAGE_SIZE, Executor, PageTable, RaggedBatch
from inferloom.models.families import unknown_architecture
from inferloom.models.kv_memory import no_room, tables_of, zeroed
from inferloom.types import ModelCard

if TYPE_CHECKING:
    from inferloom.models.transformers_cache import KVShape, PagePool

_log = logging.getLogger(__name__)
_TRIAL = (23, 9, 1, 1)  # tokens of the passes that are compared: over a page's end, and one by one
_LIMITS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_UNLIMITED = 2048  # tokens, for models that name no limit (ALiBi)


class FallbackDecoder(Executor):
    """A `transformers` causal language model as an executor. Invariant in what else is in a batch: nothing is shared."""

    def __init__(self, module: Any, *, card: ModelCard, dtype: torch.dtype, device: torch.device) -> None:
        """Raises `Unsupported` where the module's cache is not keys and values of every token."""
        self.card = card
        self.device = device
        self.vocab_size = card.vocab_size
        self._module = module
        self._dtype = dtype
        self._accepted = set(inspect.signature(module.forward).parameters)
        self._pools: list[PagePool] = []
        self._shapes: list[KVShape] = []
        self._examine()
        self._pools = []

    @property
    def kv_bytes_per_page(self) -> int:
        values: int = sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in self._shapes)
        return PAGE_SIZE * values * self._dtype.itemsize

    def allocate_kv(self, pages: int) -> None:
        from inferloom.models.transformers_cache import PagePool

        def pool(heads: int, dim: int) -> torch.Tensor:
            return zeroed((pages, PAGE_SIZE, heads, dim), dtype=self._dtype, device=self.device)

        try:
            self._pools = [
                PagePool(pool(shape.heads, shape.key_dim), pool(shape.heads, shape.value_dim))
                for shape in self._shapes
            ]
        except (OSError, RuntimeError, OverflowError) as error:
            raise no_room(pages, self.kv_bytes_per_page, self.device) from error

    def copy_page(self, source: int, target: int) -> None:
        for pool in self._pools:
            pool.keys[target].copy_(pool.keys[source])
            pool.values[target].copy_(pool.values[source])

    def page_tables(self) -> list[PageTable]:
        return tables_of([part for pool in self._pools for part in (pool.keys, pool.values)])

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        out = torch.empty(len(batch.logit_rows), self.vocab_size, device=self.device)
        for i, (first, last) in enumerate(zip(batch.starts, batch.starts[1:], strict=False)):
            asked = [
                (place, row - first) for place, row in enumerate(batch.logit_rows) if first <= row < last
            ]
            logits = self._pass(
                batch.token_ids[first:last],
                past=batch.context_lens[i] - (last - first),
                table=batch.page_tables[i],
                rows=[row for _, row in asked],
            )
            if asked:
                out[[place for place, _ in asked]] = logits
        return out

    def _pass(self, token_ids: list[int], *, past: int, table: list[int], rows: list[int]) -> torch.Tensor:
        """One sequence's tokens after `past` others: float32 logits [len(rows), vocab_size]."""
        from inferloom.models.transformers_cache import Context, paged_cache

        context = past + len(token_ids)
        slots = [
            table[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
            for position in range(past, context)
        ]
        pages = table[: -(-context // PAGE_SIZE)]
        cache = paged_cache(
            self._pools,
            Context(torch.tensor(pages, device=self.device), torch.tensor(slots, device=self.device), past),
        )
        return self._run(token_ids, past, cache, rows)

    def _run(self, token_ids: list[int], past: int, cache: Any, rows: list[int]) -> torch.Tensor:
        context = past + len(token_ids)
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([token_ids], device=self.device),
            "attention_mask": torch.ones(1, context, dtype=torch.int64, device=self.device),
            "past_key_values": cache,
            "use_cache": True,
        }
        if "position_ids" in self._accepted:
            arguments["position_ids"] = torch.arange(past, context, device=self.device)[None]
        wanted = torch.tensor(rows or [0], device=self.device)
        logits: torch.Tensor
        if "logits_to_keep" in self._accepted:
            logits = self._module(**arguments, logits_to_keep=wanted).logits[0]
        else:
            logits = self._module(**arguments).logits[0].index_select(0, wanted)
        return logits[: len(rows)].float()

    # --- before it is served ----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _examine(self) -> None:
        """Find the shapes of every layer's keys and values, and try them over pages against `transformers`' own cache."""
        from transformers import DynamicCache

        from inferloom.models.transformers_cache import shapes_of

        refused = f"{self.card.architecture} through transformers"
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, self.vocab_size, (sum(_TRIAL),), generator=generator).tolist()
        own = DynamicCache(config=self._module.config.get_text_config(decoder=True))
        try:
            theirs = self._chunks(tokens, lambda part, past: self._run(part, past, own, [len(part) - 1]))
            shapes = shapes_of(own)
            if isinstance(shapes, str):
                raise Unsupported(refused, f"{shapes}, and only keys and values of every token can be paged")
            self._shapes = shapes
            self.allocate_kv(2)
            ours = self._chunks(
                tokens, lambda part, past: self._pass(part, past=past, table=[1, 0], rows=[len(part) - 1])
            )
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise Unsupported(refused, f"it cannot run over paged keys and values ({error})") from error
        if not (ours - theirs).abs().max() <= 0.02 * theirs.abs().max():  # a NaN is no agreement either
            raise Unsupported(refused, "it answers differently over paged keys and values")

    @staticmethod
    def _chunks(tokens: list[int], run: Any) -> torch.Tensor:
        past, logits = 0, []
        for count in _TRIAL:
            logits.append(run(tokens[past : past + count], past))
            past += count
        return torch.cat(logits)


def load_fallback(
    checkpoint: Checkpoint,
    architecture: str,
    *,
    stored: torch.dtype | None,
    dtype: torch.dtype,
    device: torch.device,
    card: ModelCard,
    why: str,
) -> FallbackDecoder:
    """Load the checkpoint with `transformers`. `card` is completed; `why` says what our own decoder lacks.

    Raises `Unsupported` for what is no decoder, keeps more than keys and values, or needs code of its own, `LoadFailed`
    where the extra is not installed, `InvalidFormat` for missing weights.
    """
    transformers = _transformers(architecture)
    _check_kind(transformers, architecture, checkpoint)
    module = _module(transformers, checkpoint, architecture, dtype)
    parameters = list(module.parameters())
    if stored is not None:
        for parameter in parameters:
            parameter.data = parameter.data.to(stored).to(dtype)
    text = module.config.get_text_config(decoder=True)
    _log.warning("%s runs through transformers %s, slower: %s", architecture, transformers.__version__, why)
    return FallbackDecoder(
        module.to(device),
        card=_completed(card, parameters, text, f"transformers {transformers.__version__}: {why}"),
        dtype=dtype,
        device=device,
    )


def _completed(card: ModelCard, parameters: list[torch.Tensor], text: Any, executor: str) -> ModelCard:
    own = _longest(text)
    asked = card.max_model_len
    if asked > own:
        raise LoadFailed(
            f"max_model_len is {asked}, but the checkpoint's positions end at {own}; lower it or leave it out"
        )
    return msgspec.structs.replace(
        card,
        parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        vocab_size=text.vocab_size,
        max_model_len=asked or own,
        executor=executor,
    )


def _longest(text: Any) -> int:
    """Tokens of the longest context. LongRoPE and dynamic scaling turn differently past the original length, which would
    make cached keys wrong: there it ends."""
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings"):
        return int(rope["original_max_position_embeddings"])
    found = (getattr(text, name, None) for name in _LIMITS)
    return next((int(value) for value in found if isinstance(value, int) and value > 0), _UNLIMITED)


def _transformers(architecture: str) -> Any:
    try:
        import transformers.utils.logging as output
    except ImportError:
        raise LoadFailed(
            f"{architecture} is no family of this engine's own and runs through transformers, which is not installed: "
            "install inferloom[transformers]"
        ) from None
    disable: Any = output.disable_progress_bar
    disable()
    return sys.modules["transformers"]


def _check_kind(transformers: Any, architecture: str, checkpoint: Checkpoint) -> None:
    """Raise `Unsupported` for what is no causal language model of `transformers`."""
    from transformers.models.auto import modeling_auto as auto

    def has(table: str) -> bool:
        names: list[str] = []
        for value in getattr(auto, table).values():
            names += [value] if isinstance(value, str) else value
        return architecture in names

    if has("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES") or has("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"):
        raise Unsupported(
            f"the architecture {architecture}", "encoder-decoder models come with a later version"
        )
    if not has("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"):
        raise unknown_architecture(architecture)
    if checkpoint.format == "gguf":
        raise Unsupported(
            f"{architecture} from a GGUF file", "only its own checkpoint runs through transformers"
        )


def _module(transformers: Any, checkpoint: Checkpoint, architecture: str, dtype: torch.dtype) -> Any:
    folder = str(Path(checkpoint.folder))
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if config.is_encoder_decoder:
            raise Unsupported(
                f"the architecture {architecture}", "encoder-decoder models come with a later version"
            )
        if getattr(config, "is_decoder", True) is False and config.model_type in _bidirectional():
            raise Unsupported(f"the architecture {architecture}", "it is an encoder (is_decoder is not set)")
        module, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Unsupported:
        raise
    except Exception as error:  # whatever a module raises while it is built is the reason
        raise LoadFailed(
            f"transformers {transformers.__version__} cannot load {architecture}: {error}"
        ) from error
    if type(module).__name__ != architecture:
        raise InvalidFormat(
            f"config.json names {architecture}, but its model_type {config.model_type} is {type(module).__name__}"
        )
    if getattr(module, "_is_stateful", False):
        raise Unsupported(
            f"the architecture {architecture}",
            "it keeps a state, and only keys and values of every token can be paged",
        )
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InvalidFormat(f"tensors are missing from the checkpoint: {', '.join(missing[:5])}{more}")
    if found["unexpected_keys"]:
        _log.warning("tensors that nothing asks for: %s", ", ".join(sorted(found["unexpected_keys"])[:5]))
    return module.eval()


def _bidirectional() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
