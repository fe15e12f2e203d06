from inferloom.config.flags import from_flags
from inferloom.sources.defaults import with_defaults
from inferloom.sources.table import SHORT_NAMES


def test_a_starter_brings_its_system_prompt_unless_one_is_set() -> None:
    config = with_defaults(from_flags(["smollm2", "smollm2,name=own,system_prompt=Sing."]))
    assert [model.system_prompt for model in config.model] == [SHORT_NAMES["smollm2"].system_prompt, "Sing."]


def test_an_empty_system_prompt_is_one_that_is_set() -> None:
    (model,) = with_defaults(from_flags(["smollm2,system_prompt="])).model
    assert model.system_prompt == ""


def test_embeddings_are_computed_in_float32_unless_another_type_is_set() -> None:
    config = with_defaults(
        from_flags(["minilm", "minilm,name=b,dtype=bfloat16", "minilm,name=h,activation_dtype=half"])
    )
    assert [(model.dtype, model.driver.activation_dtype) for model in config.model] == [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float32", "float16"),
    ]


def test_other_sources_stay_as_they_are() -> None:
    config = from_flags(["Qwen/Qwen3-0.6B", ",driver=dummy,name=d"])
    assert with_defaults(config) == config
