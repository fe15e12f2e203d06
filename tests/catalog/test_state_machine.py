"""Whatever is done to models at once, in whatever order: workers are real, and so is part of the memory they say they take.

Rules begin things and leave them in flight; `pass_time` lets the event loop go on. The suite runs a fixed choice of
examples; `pytest tests/catalog/test_state_machine.py --hypothesis-profile=soak` searches for others.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import uvloop
from factories.checkpoints import make_checkpoint
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.ledger import Kinds
from inferloom.catalog.lifecycle import State, Transition
from inferloom.catalog.residence import Residence
from inferloom.config.drivers import dummy_options
from inferloom.config.schema import Config, DriverConfig, ModelConfig, RuntimeConfig
from inferloom.errors import InferloomError
from inferloom.types import ExecuteBatch
from inferloom.worker.memory import pss
from inferloom.worker.pool import LIGHT, WorkerPool

MIB = 1 << 20
BUDGET = 100  # MiB
OVER = 1.05, 32 * MIB  # how much more than was reserved a worker may be measured to take
DEATH_SECS = 1.0  # from the end of a worker to the end of every request that holds it
PATIENCE = 30.0
ALONE, TWINS = ("a", "b", "c"), ("twin", "other twin")
NAMES = (*ALONE, *TWINS)
names = st.sampled_from(NAMES)
which = st.integers(0, 11)  # of however many there are at the time


def scripted(text: str, *, said: int, had: int) -> DriverConfig:
    """A dummy that answers `text`; of its MiB `had` are really allocated."""
    options = {"text": text, "weights_mb": said - 2, "kv_mb": 2, "workspace_mb": had}
    return DriverConfig(type="dummy", options={**options, "load_secs": 0.01, "tokens_per_second": 400.0})


def models(source: str) -> list[ModelConfig]:
    twin = scripted("twins:0", said=35, had=5)
    return [
        ModelConfig(name="a", lazy=True, driver=scripted("a:0", said=8, had=32), keep_alive=0.01),
        ModelConfig(name="b", lazy=True, driver=scripted("b:0", said=30, had=10), priority=1),
        ModelConfig(name="c", lazy=True, driver=scripted("c:0", said=22, had=48)),
        ModelConfig(name="twin", lazy=True, source=source, driver=twin, group="g"),
        ModelConfig(name="other twin", lazy=True, source=source, driver=twin, keep_alive=0),
    ]


def reserved(residence: Residence) -> Kinds:
    """What the configuration says that the model takes."""
    options = dummy_options(residence.config.driver)
    return Kinds(
        weights=options.weights_mb * MIB, kv=options.kv_mb * MIB, workspace=options.workspace_mb * MIB
    )


class Ground(msgspec.Struct):
    """What all examples have in common."""

    loop: asyncio.Runner
    pool: WorkerPool
    checkpoint: Path


@pytest.fixture(scope="module", autouse=True)
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("ground") / "tiny", "llama", layers=1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        Lifecycle.ground = Ground(loop, WorkerPool(preload=LIGHT), Path(checkpoint.folder))
        loop.run(Lifecycle.ground.pool.start())
        yield
        loop.run(Lifecycle.ground.pool.stop())


def noted(check: Callable[[Lifecycle], None]) -> Callable[[Lifecycle], None]:
    """The first failure is kept: hypothesis runs again what failed, and reports what it sees then."""

    @functools.wraps(check)
    def note(self: Lifecycle) -> None:
        try:
            check(self)
        except BaseException as error:
            if Lifecycle.failure is None:
                if not hasattr(error, "__notes__"):
                    error.add_note(self.story())
                Lifecycle.failure = error
            raise

    return note


class Lifecycle(RuleBasedStateMachine):
    ground: ClassVar[Ground]
    failure: ClassVar[BaseException | None] = None  # the first that was seen

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.pool = self.ground.loop, self.ground.pool
        self.tasks: list[asyncio.Task[Any]] = []
        self.versions = Counter[str]()
        # the texts that a model may answer: that of the last change which was done, and those of changes in flight
        self.possible = {word: {f"{word}:0"} for word in (*ALONE, "twins")}
        self.flying: dict[str, set[str]] = {name: set() for name in ALONE}
        self.changes = Counter[str]()  # in flight, reloads too
        self.killed: dict[int, float] = {}
        self.lowered = False
        self.trail: list[str] = []  # what has happened: timing is not the same in a second run
        self._lived = 0.0  # seconds that the event loop has run
        self._woke: float | None = None

    @initialize()
    def start(self) -> None:
        config = Config(
            runtime=RuntimeConfig(memory_budget=f"{BUDGET}MiB"), model=models(str(self.ground.checkpoint))
        )

        async def begin() -> None:
            self.catalog = Catalog(config, self.pool, observer=self.note)

        self.run(begin())

    def note(self, change: Transition) -> None:
        self.tell(f"{change.id}: {change.old} → {change.new} {change.cause or ''}")

    def tell(self, what: str) -> None:
        self.trail.append(f"{self.clock():.4f} {what}")

    def story(self) -> str:
        there = [
            f"{one.key}: {one.state} of {[entry.id for entry in one.entries]}, {one.in_change} changes, "
            f"runner {one.runner}, reserved {one.reservation}, progress {one.progress}, leaving {one.leaving}"
            for one in self.catalog.residences()
        ]
        return "\n".join([*self.trail[-100:], *there])

    # --- the event loop, which stands still between rules -----------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        async def timed() -> None:
            self._woke = asyncio.get_running_loop().time()
            try:
                await work
            finally:
                self._lived, self._woke = self.clock(), None

        self.loop.run(timed())

    def clock(self) -> float:
        """Seconds that the event loop has run."""
        if self._woke is None:
            return self._lived
        return self._lived + asyncio.get_running_loop().time() - self._woke

    def do(self, act: Callable[[], object]) -> None:
        async def go() -> None:
            act()

        self.run(go())

    def begin(self, what: str, work: Coroutine[Any, Any, Any]) -> None:
        self.tell(what)

        async def excused() -> None:
            try:
                await work
            except InferloomError as error:  # a refusal with a reason is an end as good as any
                assert error.message and error.status >= 400

        self.do(lambda: self.tasks.append(asyncio.create_task(excused())))

    # --- what is done -----------------------------------------------------------------------------------------------

    @rule(name=names, count=st.integers(1, 3), tokens=st.sampled_from([3, 30]))
    def request(self, name: str, count: int, tokens: int) -> None:
        for _ in range(count):
            self.begin(f"ask {name}", self.ask(name, tokens))

    async def ask(self, name: str, tokens: int) -> None:
        word = "twins" if name in TWINS else name
        async with self.catalog.lease(name) as runner:
            # between the grant and here nothing else has run
            pid, text = runner.pid, dummy_options(self.catalog.resolve(name).residence.config.driver).text
            assert pid is not None, f"a lease of {name} on a worker whose death was seen"
            assert text in self.possible[word], (name, text, self.story())
            try:
                batch = ExecuteBatch(
                    request_id="r", model=name, text="x", max_tokens=tokens, ignore_eos=tokens > 3
                )
                handle = await runner.execute(batch)
                said = "".join([chunk.text async for chunk in handle])
                assert said and (said.startswith(text) or text.startswith(said)), (name, text, said)
            finally:
                if pid in self.killed:
                    assert self.clock() - self.killed[pid] < DEATH_SECS

    @rule(name=names)
    def load(self, name: str) -> None:
        self.begin(f"load {name}", self.catalog.load(name))

    @rule(name=names, force=st.booleans())
    def unload(self, name: str, force: bool) -> None:
        self.begin(f"unload {name} {force=}", self.catalog.unload(name, force=force))

    @rule(name=names, changed=st.booleans())
    def reload(self, name: str, changed: bool) -> None:
        if changed:
            (self.ground.checkpoint / "config.json").touch()
        self.begin(f"reload {name} {changed=}", self.changing(name, self.catalog.reload(name)))

    @rule(name=st.sampled_from(ALONE), said=st.sampled_from([10, 50]), had=st.sampled_from([1, 20]))
    def replace(self, name: str, said: int, had: int) -> None:
        self.versions[name] += 1
        text = f"{name}:{self.versions[name]}"
        self.possible[name].add(text)

        async def change() -> None:
            try:
                await self.catalog.change(name, driver=scripted(text, said=said, had=had))
            except InferloomError as error:
                self.tell(f"not replaced by {text}: {error.message.splitlines()[0]}")
                self.possible[name].discard(text)  # it is what it was
                raise
            finally:
                self.flying[name].discard(text)
            self.tell(f"replaced by {text}")
            self.possible[name] = {text, *self.flying[name]}

        self.flying[name].add(text)
        self.begin(f"replace {name} by {text}", self.changing(name, change()))

    async def changing(self, name: str, change: Coroutine[Any, Any, Any]) -> None:
        word = "twins" if name in TWINS else name
        self.changes[word] += 1
        try:
            await change
        finally:
            self.changes[word] -= 1

    @rule(which=which)
    def cancel(self, which: int) -> None:
        running = [task for task in self.tasks if not task.done()]
        if running:
            self.do(running[which % len(running)].cancel)

    @rule(which=which)
    def kill(self, which: int) -> None:
        if self.pool.workers:
            worker = self.pool.workers[which % len(self.pool.workers)]
            self.killed.setdefault(worker.pid, self.clock())
            self.tell(f"kill {worker.pid}")
            worker.kill()  # SIGKILL through its pidfd: the number may be somebody else's by now

    @rule(size=st.sampled_from([50, BUDGET, 200]))
    def set_budget(self, size: int) -> None:
        self.lowered = True
        self.tell(f"budget {size}")
        self.do(lambda: self.catalog.set_budget({"cpu": size * MIB}))

    @rule(name=names, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.do(lambda: self.catalog.pin(name, pinned))

    @rule(seconds=st.sampled_from([0.0, 0.002, 0.01, 0.05]))
    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # --- what holds all the time ------------------------------------------------------------------------------------

    @invariant()
    @noted
    def the_ledger_holds_what_models_hold(self) -> None:
        if not hasattr(self, "catalog"):
            return
        ledger, residences = self.catalog.ledger, self.catalog.residences()
        held = [one.reservation for one in residences if one.reservation is not None]
        assert set(held) == set(ledger.held()) and len(held) == len(set(held))
        assert ledger.used("cpu") == sum(ledger.of(one).total for one in held)
        assert self.lowered or ledger.free("cpu") >= 0
        for one in residences:
            if one.state is State.READY:
                assert one.reservation is not None and ledger.of(one.reservation) == reserved(one), one.id
            assert one.runner is None or one.reservation is not None, one.id

    @invariant()
    @noted
    def one_worker_for_a_model_and_two_while_it_is_replaced(self) -> None:
        if not hasattr(self, "catalog"):
            return
        holding = [one for one in self.catalog.residences() if one.reservation is not None]
        assert len(self.pool.workers) <= len(holding)
        # those that leave hold their memory until they are gone, and answer nobody who comes now
        staying = [one for one in holding if not one.leaving]
        said_by = [dummy_options(one.config.driver).text.partition(":")[0] for one in staying]
        for word, count in Counter(said_by).items():
            assert count <= (2 if self.changes[word] else 1), f"{count} of {word}"

    @invariant()
    @noted
    def workers_take_what_was_reserved_for_them(self) -> None:
        if not hasattr(self, "catalog"):
            return
        for one in self.catalog.residences():
            pid = getattr(one.runner, "pid", None)
            found = None if pid is None else pss(pid)
            if found is not None and one.reservation is not None:
                factor, more = OVER
                held = self.catalog.ledger.of(one.reservation).total
                assert found.bytes <= factor * held + more, (one.id, found.bytes, held)

    # --- the end ----------------------------------------------------------------------------------------------------

    @noted
    def teardown(self) -> None:
        if not hasattr(self, "catalog"):
            return
        try:
            self.run(self.end())
        except BaseException as error:
            error.add_note(self.story())
            raise
        finally:
            self.run(self.clear())

    async def end(self) -> None:
        for name in NAMES:
            self.catalog.pin(name, False)
        self.catalog.set_budget({"cpu": BUDGET * MIB})
        pending = [task for task in self.tasks if not task.done()]
        if pending:
            _, late = await asyncio.wait(pending, timeout=PATIENCE)
            assert not late
        for task in self.tasks:
            if not task.cancelled():
                task.result()
        for name in NAMES:  # whatever happened to a model, it answers
            await self.catalog.load(name)
            await self.ask(name, 3)
        # what was replaced goes, and the twins share one
        await becomes(lambda: len(self.catalog.residences()) == 4)

    async def clear(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.catalog.close()
        assert self.catalog.ledger.held() == []
        assert self.pool.workers == []


SEARCHING = settings.get_current_profile_name() == "soak"
SETTINGS = settings(
    max_examples=300 if SEARCHING else 12,
    stateful_step_count=60 if SEARCHING else 40,
    derandomize=not SEARCHING,
    phases=(Phase.generate,),  # a second run of an example is another one: there is nothing to reduce
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_what_must_hold_holds_whatever_is_done_at_once() -> None:
    try:
        run_state_machine_as_test(Lifecycle, settings=SETTINGS)
    except Flaky:  # the second run of what failed is another one, and may go well
        assert Lifecycle.failure is not None
        raise Lifecycle.failure from None
