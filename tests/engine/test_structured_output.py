"""100 schemas and 20 tool sets at temperature 1.5 on a random-weight model: whatever finishes, validates."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engine.driving import Answers, assert_all_pages_free, drive
from factories.checkpoints import make_checkpoint

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, GrammarSpec, SamplingSpec
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import Executor
from inferloom.models.loader import load
from inferloom.text.codec import TextCodec
from inferloom.text.schemas import check_schema, guided
from inferloom.types import Tool, ToolChoice

SCHEMAS, TOOL_SETS = 100, 20
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
WORDS = ("alpha", "beta", "gamma", "delta", 'quo"te', "back\\slash", "naïve", "日本")


@dataclass
class House:
    checkpoint: Checkpoint
    codec: TextCodec
    executor: Executor

    def drive(self, requests: list[Generate]) -> Answers:
        wake = threading.Event()
        engine = Engine(
            self.executor,
            pages=400,
            max_batch_size=32,
            tokenizer_json=(Path(self.checkpoint.folder) / "tokenizer.json").read_text,
            eos_token_ids=self.codec.eos_token_ids,
            wake=wake.set,
        )
        answers = drive(engine, requests, wake=wake)
        assert engine.rejections() == []
        assert_all_pages_free(engine)
        return answers

    def request(self, number: int, spec: GrammarSpec | None, *, max_tokens: int = 400) -> Generate:
        return Generate(
            number,
            self.codec.encode(f"Request {number}:", add_special_tokens=False),
            max_tokens,
            SamplingSpec(temperature=1.5, seed=number),
            grammar=spec,
            stop_token_ids=sorted(self.codec.eos_token_ids),
        )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    checkpoint = make_checkpoint(
        tmp_path_factory.mktemp("models") / "llama", "llama", hidden_size=32, layers=1
    )
    executor = load(checkpoint, dtype="float32", activation_dtype="float32")
    assert isinstance(executor, Executor)
    return House(checkpoint, TextCodec.load(checkpoint), executor)


def random_schema(rng: random.Random, *, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "pattern", "enum", "const", "integer", "number", "boolean", "null", "format"]
    if depth < 3:
        kinds += ["object"] * 4 + ["array"] * 2 + ["anyOf"]
    kind = rng.choice(kinds) if depth else "object"
    if kind == "object":
        names = rng.sample(["id", "name", "size of it", "tags", "more", "ünï"], rng.randrange(1, 5))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth=depth + 1) for name in names},
            "required": [name for name in names if rng.random() < 0.7],
            "additionalProperties": False,
        }
    if kind == "array":
        least = rng.randrange(3)
        return {
            "type": "array",
            "items": random_schema(rng, depth=depth + 1),
            "minItems": least,
            "maxItems": least + rng.randrange(3),
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth=depth + 1) for _ in range(2)]}
    low = rng.randrange(-50, 50)
    simple: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": rng.randrange(3), "maxLength": 3 + rng.randrange(10)},
        "pattern": {
            "type": "string",
            "pattern": rng.choice(["^[a-z]{2,5}$", "^\\d{3}-\\d{4}$", "^(yes|no)$"]),
        },
        "enum": {"enum": rng.sample([*WORDS, 1, 2.5, None, True], 3)},
        "const": {"const": rng.choice([*WORDS, 7, False])},
        "integer": {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1, 1000)},
        "number": {"type": "number", "minimum": low, "exclusiveMaximum": low + rng.randrange(1, 20)},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "format": {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4"])},
    }
    return simple[kind]


def test_every_finished_answer_to_100_schemas_validates(house: House) -> None:
    rng = random.Random(2026)
    schemas = [random_schema(rng) for _ in range(SCHEMAS)]
    for schema in schemas:
        check_schema(schema, param="schema")
    requests = [
        house.request(number, GrammarSpec("json_schema", json.dumps(guided(schema))))
        for number, schema in enumerate(schemas)
    ]
    free = [house.request(1000 + i, None, max_tokens=100) for i in range(10)]  # mixed into the same batches
    answers = house.drive([*requests[:50], *free, *requests[50:]])

    finished = 0
    for number, schema in enumerate(schemas):
        answer = answers[number, 0]
        assert answer.finish in ("stop", "length")
        if answer.finish == "stop":
            finished += 1
            value = json.loads(house.codec.decode(answer.tokens))
            jsonschema.validate(value, schema, format_checker=FORMATS)
    assert finished >= SCHEMAS * 0.9
    alone = house.drive(free)
    assert all(answers[1000 + i, 0].tokens == alone[1000 + i, 0].tokens for i in range(10))


def test_every_finished_call_of_20_tool_sets_is_of_a_tool_and_validates(house: House) -> None:
    rng = random.Random(7)
    sets = []
    for number in range(TOOL_SETS):
        tools = [
            Tool(name=f"tool_{number}_{i}", description="Does a thing.", parameters=random_schema(rng))
            for i in range(rng.randrange(1, 5))
        ]
        choice = (
            ToolChoice(mode="function", name=tools[0].name)
            if number % 3 == 0
            else ToolChoice(mode="required")
        )
        sets.append((tools, choice))
    requests = []
    for number, (tools, choice) in enumerate(sets):
        constraint = house.codec.tool_format.constraint(tools, choice, parallel=False)
        assert constraint is not None
        assert constraint.kind != "json_object"
        requests.append(house.request(number, GrammarSpec(constraint.kind, constraint.value)))
    answers = house.drive(requests)

    finished = 0
    for number, (tools, choice) in enumerate(sets):
        answer = answers[number, 0]
        assert answer.finish in ("stop", "length")
        if answer.finish != "stop":
            continue
        finished += 1
        parser = house.codec.tool_format.parser(tools)
        text = house.codec.decode(answer.tokens, skip_special_tokens=False)
        rest, deltas = parser.push(text)
        last_rest, last = parser.flush()
        name = "".join(delta.name or "" for delta in [*deltas, *last])
        arguments = "".join(delta.arguments for delta in [*deltas, *last])
        assert (rest + last_rest).strip() == ""
        (tool,) = [tool for tool in tools if tool.name == name]
        if choice.mode == "function":
            assert name == choice.name
        jsonschema.validate(json.loads(arguments), tool.parameters, format_checker=FORMATS)
    assert finished >= TOOL_SETS * 0.9
