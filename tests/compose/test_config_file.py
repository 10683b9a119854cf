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


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        read_config_file("nowhere.toml", "--config")
    assert str(error.value) == (
        "the config file nowhere.toml cannot be read: No such file or directory\n  set by: --config\n  remedy: check the path"
    )
