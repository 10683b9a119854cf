import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.compose.config_file import key_lines, read_config_file
from core.errors import UserError

DOCUMENT = '''\
# a comment with [brackets] and = signs

model = "demo"   # "not a string end
"max model" = 1
a.b.'c d' = """
x = 1
[not_a_table]
""\\"x"""" # end
list = [
  "]", # ] in a comment
  { inner = 1 },
]
empty = ""
literal = \'\'\'
y = 2
\'\'\'\'
[openai_http]
port = 8000

[ deep . "er" ]
key = {x = 1, y = "}"}
[[many]]
z = 1
'''


def test_every_key_has_the_line_it_is_first_written_on():
    assert tomllib.loads(DOCUMENT)
    assert key_lines(DOCUMENT) == {
        ("model",): 3,
        ("max model",): 4,
        ("a",): 5,
        ("a", "b"): 5,
        ("a", "b", "c d"): 5,
        ("list",): 9,
        ("empty",): 13,
        ("literal",): 14,
        ("openai_http",): 17,
        ("openai_http", "port"): 18,
        ("deep",): 20,
        ("deep", "er"): 20,
        ("deep", "er", "key"): 21,
        ("many",): 22,
        ("many", "z"): 23,
    }


def test_windows_line_ends_do_not_move_lines():
    assert key_lines(DOCUMENT.replace("\n", "\r\n")) == key_lines(DOCUMENT)


keys = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=8)
texts = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), max_size=12)
values = st.one_of(
    st.integers(-9, 9).map(str),
    texts.map(json.dumps),
    texts.filter(lambda text: "'" not in text).map(lambda text: f"'{text}'"),
    texts.map(lambda text: '"""\n' + text.replace("\\", "\\\\").replace('"', '\\"') + '\n"""'),
    st.lists(texts.map(json.dumps), max_size=3).map(lambda items: "[\n" + ",\n".join(items) + "\n]"),
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(keys, st.dictionaries(keys, values, max_size=3), max_size=3),
    st.lists(st.sampled_from(["", "# [x] = 'y\"", "  "]), min_size=1, max_size=3),
)
def test_lines_agree_with_where_a_writer_put_them(tables, filler):
    lines, expected = [], {}
    for number, (table, content) in enumerate(tables.items()):
        lines.append(filler[number % len(filler)])
        expected[(table,)] = sum(line.count("\n") + 1 for line in lines) + 1
        lines.append(f"[{json.dumps(table)}]")
        for key, value in content.items():
            expected[(table, key)] = sum(line.count("\n") + 1 for line in lines) + 1
            lines.append(f"{json.dumps(key)} = {value} # {key!r}")
    text = "\n".join(lines)
    tomllib.loads(text)
    assert key_lines(text) == expected


def test_a_broken_file_is_refused_with_its_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text('model = "demo"\nport 8000\n')
    with pytest.raises(UserError) as error:
        read_config_file(str(path), "--config")
    assert str(error.value) == (
        f"the config file {path} is not TOML: expected '=' after a key in a key/value pair\n  set by: {path}:2"
    )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.toml", "a = " + "[" * 3000, "nested too deeply\n  set by: {path}"),
        ("a.toml", "a = " + "9" * 5000, "not TOML: exceeds the limit (4300 digits) for integer string conversion"),
        ("a.yaml", "a: " + "[" * 3000, "nested too deeply"),
        ("a.yaml", "seed: 2001-99-99", "not YAML: month must be in 1..12\n  set by: {path}"),
        ("a.yaml", "a: !!int x", "not YAML: invalid literal for int() with base 10: 'x'\n  set by: {path}"),
        ("a.yaml", "a: 1\n---\nb: 1", "not YAML: expected a single document in the stream, but found another document\n"),
        (
            "a.json",
            "{}",
            "not TOML: invalid statement\n  set by: {path}:1\n"
            "  remedy: if it is YAML, or JSON, give it a name that ends in .yaml",
        ),
    ],
)
def test_a_hostile_file_is_refused_in_a_sentence(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_config_file(str(path), "--config")
    assert str(error.value).startswith(f"the config file {path} is {expected.format(path=path)}")


def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "windows.toml"
    path.write_text("seed = 3\n", encoding="utf-8-sig")
    assert read_config_file(str(path), "--config").values == {"seed": 3}


def test_no_name_is_no_file():
    with pytest.raises(UserError) as error:
        read_config_file("", "--config")
    assert str(error.value) == (
        "--config names no config file: it is empty\n  set by: --config\n  remedy: --config FILE, or leave it out"
    )


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        read_config_file("nowhere.toml", "--config")
    assert str(error.value) == (
        "the config file nowhere.toml cannot be read: No such file or directory\n  set by: --config\n  remedy: check the path"
    )
