"""Grammars: compiling beside the step loop, masks, ends, and refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest
from engine.driving import Answers, drive
from engine.history import HistoryExecutor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from inferloom.engine import grammar as grammar_module
from inferloom.engine.engine import Engine
from inferloom.engine.grammar import Compiler, GrammarError, Masker, Matcher
from inferloom.engine.messages import Generate, GrammarSpec, SamplingSpec

EOS, OTHER = 256, 257
PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}, "pet": {"enum": ["cat", "dog"]}},
    "required": ["age", "pet"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token; 256 is the end, 257 another special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<other>"])
    return tokenizer


TOKENIZER = byte_tokenizer()


class House:
    def __init__(self, *, vocab: int = 258, **options: object) -> None:
        self.wake = threading.Event()
        self.engine = Engine(
            HistoryExecutor(vocab_size=vocab),
            pages=200,
            tokenizer_json=TOKENIZER.to_str,
            eos_token_ids=[EOS],
            wake=self.wake.set,
            **options,  # type: ignore[arg-type]
        )

    def drive(self, requests: list[Generate], between: Callable[[int], None] = lambda step: None) -> Answers:
        return drive(self.engine, requests, wake=self.wake, between=between)


def request(
    id: int, spec: GrammarSpec | None, *, n: int = 1, stops: list[int] | None = None, max_tokens: int = 80
) -> Generate:
    sampling = SamplingSpec(temperature=1.5, seed=id)
    return Generate(
        id,
        [1, 2, 3],
        max_tokens,
        sampling,
        n=n,
        grammar=spec,
        stop_token_ids=[EOS] if stops is None else stops,
    )


def schema(value: object) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(value))


def text(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens)


@pytest.mark.parametrize("vocab", [258, 300, 257])
def test_answers_match_their_grammar_whether_or_not_tokenizer_and_logits_are_of_one_size(vocab: int) -> None:
    answers = House(vocab=vocab).drive([request(i, schema(PERSON), n=2) for i in range(10)])
    assert len(answers) == 20
    for answer in answers.values():
        assert answer.finish == "stop"
        person = json.loads(text(answer.tokens))
        assert 0 <= person["age"] <= 150
        assert person["pet"] in ("cat", "dog")


def test_free_and_constrained_rows_share_a_batch() -> None:
    house = House()
    specs = [
        None,
        schema(PERSON),
        None,
        GrammarSpec("regex", "(ab)+c"),
        GrammarSpec("lark", 'start: "x" ("y" | "z")'),
    ]
    together = house.drive([request(i, spec) for i, spec in enumerate(specs)])
    for i, spec in enumerate(specs):
        assert together[i, 0].tokens == House().drive([request(i, spec)])[i, 0].tokens
    assert text(together[4, 0].tokens) in ("xy", "xz")
    assert text(together[3, 0].tokens).endswith("abc")


def test_the_end_of_the_grammar_is_the_end_of_the_choice_without_another_step() -> None:
    answers = House(speculative_tokens=0).drive([request(1, GrammarSpec("regex", "yes|nay"))])
    assert text(answers[1, 0].tokens) in ("yes", "nay")
    assert (answers[1, 0].finish, answers[1, 0].steps) == ("stop", 3)


def test_a_text_that_the_grammar_forces_takes_one_step() -> None:
    spec = GrammarSpec("regex", "(yes|nay), and so be it")
    house = House(speculative_tokens=30)
    answer = house.drive([request(1, spec)])[1, 0]
    assert answer.steps == 2  # the first letter is drawn with the prompt, all others follow from it
    assert answer.tokens == House(speculative_tokens=0).drive([request(1, spec)])[1, 0].tokens
    stats = house.engine.stats()
    assert (stats.drafted_tokens, stats.accepted_tokens) == (len(answer.tokens) - 1, len(answer.tokens) - 1)


def test_a_mask_along_a_draft_is_what_stands_after_each_token_and_leaves_the_matcher_where_it_was() -> None:
    compiler = Compiler(TOKENIZER.to_str, vocab_size=258, ends=frozenset([EOS]))
    masker = Masker(258)
    draft = TOKENIZER.encode("abab").ids
    (b,) = TOKENIZER.encode("b").ids
    matcher = compiled(compiler, GrammarSpec("regex", "(ab)+c?"))
    before = matcher.copy()
    along = masker.allowed_along(matcher, frozenset([b]), draft)
    for row in range(5):
        assert along[row].tolist() == masker.allowed([before], [frozenset([b])])[0].tolist()
        if row < 4:
            assert before.advance(draft[row])
    fresh = compiled(compiler, GrammarSpec("regex", "(ab)+c?"))
    assert masker.allowed([matcher], [frozenset()]).equal(masker.allowed([fresh], [frozenset()]))


def compiled(compiler: Compiler, spec: GrammarSpec) -> Matcher:
    found = compiler.compile(1, spec)
    while found is None:
        for answer in compiler.collect():
            assert isinstance(answer.result, Matcher)
            found = answer.result
        time.sleep(0.001)
    return found


def test_a_grammar_ends_with_the_models_end_token_even_if_the_request_ignores_it() -> None:
    answers = House().drive(
        [request(i, GrammarSpec("regex", "a+"), stops=[], max_tokens=500) for i in range(5)]
    )
    assert {a.finish for a in answers.values()} == {"stop"}
    assert all(EOS not in a.tokens for a in answers.values())


def test_a_stop_token_of_the_request_counts_only_where_the_grammar_can_end() -> None:
    (b,) = TOKENIZER.encode("b").ids
    # "b" must come as text first; after it the grammar can end, so another "b" is the stop token.
    answers = House().drive([request(i, GrammarSpec("regex", "ab[cd]*"), stops=[b]) for i in range(20)])
    assert {a.finish for a in answers.values()} <= {"stop", "length"}
    for answer in answers.values():
        assert text(answer.tokens).startswith("ab")
        assert text(answer.tokens).count("b") == 1
    assert any(a.finish == "stop" for a in answers.values())


def test_max_tokens_cuts_a_constrained_answer_short() -> None:
    answer = House().drive([request(1, schema(PERSON), max_tokens=4)])[1, 0]
    assert (len(answer.tokens), answer.finish) == (4, "length")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (GrammarSpec("regex", "(a"), "unclosed group"),
        (GrammarSpec("lark", "start: foo"), "unknown name"),
        (schema({"type": "strin"}), "Invalid type"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (GrammarSpec("json_schema", "no json"), "expected ident"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_with_the_reason(spec: GrammarSpec, words: str) -> None:
    house = House()
    answers = house.drive([request(1, spec), request(2, None, max_tokens=3)])
    (rejected,) = house.engine.rejections()
    assert (rejected.id, rejected.kind) == (1, "invalid_request")
    assert words in rejected.message
    assert set(answers) == {(2, 0)}


def test_without_a_tokenizer_grammars_are_unsupported() -> None:
    engine = Engine(HistoryExecutor(), pages=10)
    engine.submit(request(1, GrammarSpec("regex", "a")))
    (rejected,) = engine.rejections()
    assert rejected.kind == "unsupported"
    assert "tokenizer.json" in rejected.message


def test_others_go_on_while_a_grammar_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    original = grammar_module.grammar_text

    def slow(spec: GrammarSpec) -> str:
        assert gate.wait(30)
        return original(spec)

    monkeypatch.setattr(grammar_module, "grammar_text", slow)
    house = House()
    house.engine.submit(request(1, schema(PERSON)))
    assert not house.engine.has_work
    assert house.engine.unfinished == 1
    assert house.engine.stats().waiting == 1
    answers = drive_until_idle(house, request(2, None, max_tokens=5))
    assert len(answers[2]) == 5
    gate.set()
    assert json.loads(text(house.drive([])[1, 0].tokens))


def drive_until_idle(house: House, spec: Generate) -> dict[int, list[int]]:
    house.engine.submit(spec)
    tokens: dict[int, list[int]] = {}
    while house.engine.has_work:
        for step in house.engine.step():
            tokens.setdefault(step.id, []).extend(step.tokens)
    return tokens


def test_a_request_can_be_cancelled_while_its_grammar_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    original = grammar_module.grammar_text

    def slow(spec: GrammarSpec) -> str:
        assert gate.wait(30)
        return original(spec)

    monkeypatch.setattr(grammar_module, "grammar_text", slow)
    house = House()
    house.engine.submit(request(1, schema(PERSON)))
    house.engine.cancel(1)
    assert house.engine.unfinished == 0
    gate.set()
    assert house.wake.wait(30)
    assert house.engine.has_work
    assert house.engine.step() == []
    assert not house.engine.has_work


def test_a_grammar_that_compiles_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun = threading.Event(), threading.Event()
    original = grammar_module.grammar_text

    def slow(spec: GrammarSpec) -> str:
        begun.set()
        assert gate.wait(30)
        return original(spec)

    monkeypatch.setattr(grammar_module, "grammar_text", slow)
    now = [100.0]
    house = House(clock=lambda: now[0])
    house.engine.submit(request(1, schema(PERSON)))
    assert begun.wait(30)
    assert house.engine.deadline == 102.0
    assert house.engine.step() == []
    assert house.engine.rejections() == []
    now[0] = 102.0
    house.engine.step()
    (rejected,) = house.engine.rejections()
    assert "longer than 2 s" in rejected.message
    assert house.engine.unfinished == 0
    assert house.engine.deadline is None
    gate.set()
    assert house.wake.wait(30)
    house.engine.step()  # the late result is dropped
    assert house.engine.rejections() == []
    assert not house.engine.has_work


def test_forced_text_is_written_in_the_tokenizers_own_tokens() -> None:
    """And not letter by letter, which takes more steps and is nothing a model was trained on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the dog", '{"age": 12, "pet": "cat"}'] * 5, trainer)
    wake = threading.Event()
    words = tokenizer.get_vocab_size()
    compiler = Compiler(tokenizer.to_str, vocab_size=words, ends=frozenset([0]), wake=wake.set)
    compiler.compile(1, GrammarSpec(kind="regex", value='\\{"pet": "cat and (the dog|12)"\\}'))
    (matcher,) = collected(compiler, wake, 1)
    assert isinstance(matcher, Matcher)
    for token in tokenizer.encode('{"pet": "cat and').ids:
        (mask,) = Masker(words).allowed([matcher], [frozenset()])
        assert mask.nonzero().flatten().tolist() == [token]
        assert matcher.advance(token)


def collected(compiler: Compiler, wake: threading.Event, count: int) -> list[Matcher | GrammarError]:
    results: list[Matcher | GrammarError] = []
    while len(results) < count:
        assert wake.wait(30)
        wake.clear()
        results += [answer.result for answer in compiler.collect()]
    return results


def test_a_grammar_is_compiled_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[GrammarSpec] = []
    original = grammar_module.grammar_text
    monkeypatch.setattr(
        grammar_module, "grammar_text", lambda spec: (compiled.append(spec), original(spec))[1]
    )
    wake = threading.Event()
    compiler = Compiler(TOKENIZER.to_str, vocab_size=258, ends=frozenset([EOS]), wake=wake.set)
    spec = GrammarSpec("regex", "abc")
    for owner in range(5):
        assert compiler.compile(owner, spec) is None
    results = collected(compiler, wake, 5)
    assert all(isinstance(result, Matcher) for result in results)
    assert len({id(result) for result in results}) == 5
    assert isinstance(compiler.compile(6, spec), Matcher)
    assert compiled == [spec]


@pytest.mark.parametrize("text", ['{"not": "a tokenizer"}', "{not json", "[]"])
def test_a_tokenizer_that_cannot_be_read_refuses_every_grammar(text: str) -> None:
    wake = threading.Event()
    compiler = Compiler(lambda: text, vocab_size=258, ends=frozenset(), wake=wake.set)
    compiler.compile(1, GrammarSpec("regex", "a"))
    (result,) = collected(compiler, wake, 1)
    assert isinstance(result, GrammarError)
