"""The starter models say what their weights say: held against transformers, through HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
import torch

from inferloom.formats.checkpoint import Checkpoint

SYSTEM = "You are a concise assistant. Answer in one short sentence."
LONGEST = 24
# Every token of these answers leads the next best by this much in float32 (nat): none is decided by rounding.
MARGIN = 0.02
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Italy?",
    "What is the capital of Spain?",
    "What is the capital of Japan?",
    "What is the capital of England?",
    "What is the chemical symbol for water?",
    "What is the chemical symbol for gold?",
    "How many days are in a week?",
    "How many legs does a spider have?",
    "What color is the sky on a clear day?",
    "What is 2 + 2?",
    "What is the opposite of hot?",
    "What do cows eat?",
    "What is the boiling point of water in Celsius?",
    "Write a Python function that adds two numbers.",
    "How many months are in a year?",
    "Which ocean is the largest?",
    "What is the currency of Japan?",
    "Who painted the Mona Lisa?",
    "What is the capital of Egypt?",
)
FACTS = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Spain?", "Madrid"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the chemical symbol for water?", "H2O"),
    ("What is the chemical symbol for gold?", "Au"),
    ("What is the opposite of hot?", "cold"),
)
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France.",
    "x",
    "Naïve façades cost 12,345 €, 中文 too.",
    "A long one: " + "the sea was calm and the boats lay still, " * 12,
    "Water boils at 100 degrees.",
)


def chat(client: openai.OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=LONGEST,
    )
    return answer.choices[0].message.content or ""


def stream(client: openai.OpenAI, model: str, question: str) -> str:
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=LONGEST,
        stream=True,
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The reference beside busy workers: its own threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_greedy_answers_equal_those_of_transformers(client: openai.OpenAI, smollm2_floats: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with ThreadPoolExecutor(len(QUESTIONS)) as together:
        answers = list(together.map(lambda question: chat(client, "exact", question), QUESTIONS))
    model = AutoModelForCausalLM.from_pretrained(smollm2_floats, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_floats)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer.encode(rendered, add_special_tokens=False)
        said = tokenizer.encode(answer, add_special_tokens=False)
        if len(said) < LONGEST:
            said.append(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        # Greedy decoding gives `said` exactly where each of its tokens is the best after those before it.
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + said]), logits_to_keep=len(said) + 1).logits[0, :-1]
        best = logits.log_softmax(-1).topk(2)
        assert best.indices[:, 0].tolist() == said, (question, answer)
        assert float((best.values[:, 0] - best.values[:, 1]).min()) > MARGIN, question


def test_facts_are_right_streamed_and_not(client: openai.OpenAI) -> None:
    questions = [question for question, _ in FACTS]
    with ThreadPoolExecutor(len(FACTS)) as together:
        whole = list(together.map(lambda question: chat(client, "smollm2", question), questions))
        streamed = list(together.map(lambda question: stream(client, "smollm2", question), questions))
    wrong = [
        (fact, *answers)
        for (_, fact), *answers in zip(FACTS, whole, streamed, strict=True)
        if not all(fact in answer for answer in answers)
    ]
    assert wrong == []


def test_a_question_without_a_model_goes_to_the_default(client: openai.OpenAI) -> None:
    answer = chat(client, "default", "What is the capital of France?")
    assert "Paris" in answer


@pytest.fixture(scope="module")
def references(minilm_checkpoint: Checkpoint) -> np.ndarray:
    """Mean-pooled, normalised embeddings of SENTENCES by transformers: [sentences, 384] float32."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm_checkpoint.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_checkpoint.folder)
    rows = []
    for sentence in SENTENCES:
        inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    return np.stack(rows)


def embed(client: openai.OpenAI, texts: Sequence[str], encoding: str) -> np.ndarray:
    answer = client.embeddings.create(model="minilm", input=list(texts), encoding_format=encoding)  # type: ignore[arg-type]
    assert [row.index for row in answer.data] == list(range(len(texts)))
    rows = [row.embedding for row in answer.data]
    if encoding == "base64":
        import base64

        rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows]  # type: ignore[arg-type]
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_equal_those_of_transformers_alone_and_batched(
    client: openai.OpenAI, references: np.ndarray, encoding: str
) -> None:
    batched = embed(client, SENTENCES, encoding)
    alone = np.concatenate([embed(client, [sentence], encoding) for sentence in SENTENCES])
    assert np.abs(batched - references).max() < 1e-4
    assert np.abs(alone - references).max() < 1e-4
