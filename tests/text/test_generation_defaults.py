import pytest

from core.errors import UserError
from core.interfaces.model import ModelFolder
from core.models.ernie45 import Ernie45
from core.models.llama import Llama
from core.text import generation_defaults


def test_what_the_file_states(folder):
    stated = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "eos_token_id": 2, "do_sample": True}
    assert generation_defaults(folder(generation_config__json=stated)) == {"temperature": 0.6, "top_p": 0.9}


def test_an_ernie_without_the_file_gets_the_family_s(folder):
    assert generation_defaults(folder(Ernie45().text())) == {"temperature": 1.0, "top_p": 0.7}


def test_an_ernie_whose_file_states_nothing_gets_nothing(folder):
    model = folder(Ernie45().text(), generation_config__json={"eos_token_id": 2})
    assert generation_defaults(model) == {}


def test_others_get_nothing(folder):
    assert generation_defaults(folder(Llama().text())) == {}
    assert generation_defaults(ModelFolder("random:tiny", None, "random")) == {}


def test_a_single_file_gets_the_ones_it_was_found_with(tmp_path):
    file = tmp_path / "demo.gguf"
    file.touch()
    assert generation_defaults(ModelFolder("demo", file, "gguf", {"temperature": 0.2})) == {"temperature": 0.2}


def test_a_default_that_is_no_number_is_refused(folder):
    model = folder(generation_config__json={"top_p": "0.7"})
    with pytest.raises(UserError) as refused:
        generation_defaults(model)
    assert str(refused.value) == (
        "top_p is '0.7', not a number\n"
        f"  set by: {model.path / 'generation_config.json'}\n"
        "  remedy: correct or remove that line of the file"
    )


def test_a_file_that_is_no_object_is_refused(folder):
    with pytest.raises(UserError, match=r"^generation_config\.json holds no JSON object"):
        generation_defaults(folder(generation_config__json=[1]))
