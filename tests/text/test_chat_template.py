import pytest

from core.errors import RequestError, UserError
from core.interfaces.model import ModelFolder
from core.models.ernie45 import Ernie45
from core.models.llama import Llama
from core.text import chat_template
from core.text.chat_template import MAX_ROUNDS, JinjaChatTemplate, load_chat_template

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]
ERNIE = Ernie45().text()


class Named:
    def __init__(self):
        self.named = {"bos_token": "<s>", "eos_token": "</s>"}


def refusal(template, messages=HELLO, **kwargs):
    with pytest.raises(RequestError) as refused:
        JinjaChatTemplate({"default": template}).render(messages, **kwargs)
    return refused.value


def test_a_template_of_the_wild():
    template = JinjaChatTemplate({"default": SMOLLM})
    expected = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert template.render(HELLO) == expected + "<|im_start|>assistant\n"
    assert template.render(HELLO, add_generation_prompt=False) == expected


def test_ernie_has_a_template_when_the_checkpoint_has_none(folder):
    template = load_chat_template(folder(ERNIE), None, Named())
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Who?"},
    ]
    text = "<|begin_of_sentence|>Be brief.\nUser: Hello\nAssistant: Hi<|end_of_sentence|>User: Who?\n"
    assert template.render(messages) == text + "Assistant: "
    assert template.render(messages, add_generation_prompt=False) == text
    with pytest.raises(RequestError) as refused:
        template.render([{"role": "tool", "content": "x"}])
    assert refused.value.message == (
        "the chat template refuses these messages: ERNIE-4.5 knows the roles system, user and assistant, not 'tool'"
    )
    assert refused.value.param == "messages"


def test_a_model_without_files_speaks_as_its_family_or_plainly():
    ernie = load_chat_template(ModelFolder("random:tiny", None, "random", family=ERNIE), None, Named())
    assert ernie.render(HELLO) == "<|begin_of_sentence|>User: Hello\nAssistant: "
    plain = load_chat_template(ModelFolder("random:llama-tiny", None, "random"), None, Named())
    assert plain.render(HELLO) == "User: Hello\nAssistant: "
    assert plain.render(HELLO, add_generation_prompt=False) == "User: Hello\n"


def test_a_gguf_file_without_one_has_none_whatever_it_runs_as(gguf_file):
    path = gguf_file(["a"], [1], model="gpt2", merges=[])
    assert load_chat_template(ModelFolder("a model", path, "gguf", family=ERNIE), None, Named()) is None


def test_another_model_without_a_template_has_none(folder):
    assert load_chat_template(folder(Llama().text()), None, Named()) is None


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": {"chat_template": "own {{ bos_token }}"}},
        {"tokenizer_config__json": {"chat_template": [{"name": "default", "template": "own {{ bos_token }}"}]}},
        {"chat_template__json": {"chat_template": "own {{ bos_token }}"}},
        {"chat_template__jinja": "own {{ bos_token }}", "tokenizer_config__json": {"chat_template": "older"}},
    ],
)
def test_the_checkpoint_brings_its_own(files, folder):
    assert load_chat_template(folder(ERNIE, **files), None, Named()).render(HELLO) == "own <s>"


def test_a_gguf_file_brings_its_own(gguf_file):
    path = gguf_file(["a"], [1], model="gpt2", merges=[], strings={"tokenizer.chat_template": SMOLLM})
    template = load_chat_template(ModelFolder("a model", path, "gguf"), None, Named())
    assert template.render(HELLO).endswith("user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_tools_choose_the_template_for_tools():
    template = JinjaChatTemplate({"default": "plain", "tool_use": "{{ tools | tojson }}"})
    assert template.render(HELLO) == "plain"
    assert template.render(HELLO, tools=[{"é": "<b>"}]) == '[{"é": "<b>"}]'


def test_an_override_is_a_file_or_the_template_itself(folder, tmp_path):
    model = folder(tokenizer_config__json={"chat_template": "own"}, other__jinja="from the file {{ messages[0].content }}")
    assert load_chat_template(model, str(tmp_path / "other.jinja"), Named()).render(HELLO) == "from the file Hello"
    assert load_chat_template(model, "{{ messages[0].role }}", Named()).render(HELLO) == "user"


def test_an_override_that_is_neither_is_refused(folder):
    with pytest.raises(UserError) as refused:
        load_chat_template(folder(), "nothing.jinja", Named())
    assert str(refused.value) == (
        "chat template 'nothing.jinja' is neither a file that can be read nor a Jinja template\n"
        "  set by: chat_template\n"
        "  remedy: give the path of a .jinja file"
    )


@pytest.mark.parametrize("stated", [["text"], [{"name": "default"}], {"default": 1}, 7])
def test_a_template_that_is_none_is_refused(folder, stated):
    with pytest.raises(UserError) as refused:
        load_chat_template(folder(tokenizer_config__json={"chat_template": stated}), None, Named())
    assert refused.value.problems[0].what == (
        "the chat template in tokenizer_config.json cannot be read: chat_template is neither a text nor a list of named ones"
    )


def test_a_template_of_other_bytes_is_refused(folder):
    with pytest.raises(UserError) as refused:
        load_chat_template(folder(chat_template__jinja=b"\xff"), None, Named())
    assert refused.value.problems[0].what.startswith("the chat template in chat_template.jinja cannot be read: 'utf-8' codec")


def test_a_template_that_does_not_parse_is_refused(folder):
    with pytest.raises(UserError) as refused:
        load_chat_template(folder(), "{% if %}\n", Named())
    assert str(refused.value).startswith("the chat template does not parse: line 1: ")


def test_blocks_are_trimmed_and_loops_can_break():
    source = (
        "{% for m in messages %}\n  {% if loop.index > 1 %}\n{% break %}\n  {% endif %}\n"
        "[{{ m.content }}{{ loop.last }}]\n{% endfor %}"
    )
    assert JinjaChatTemplate({"default": source}).render(HELLO * 3) == "[HelloFalse]\n"


def test_marks_for_training_are_rendered_through():
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert JinjaChatTemplate({"default": source}).render(HELLO) == "Hello"


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    template = JinjaChatTemplate({"default": "{{ messages[0].content }}"})
    assert template.render([{"role": "user", "content": parts}]) == "one\ntwo"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0] is of type 'image_url'; this model reads only text",
        ),
        ({"role": "user", "content": ["a"]}, "messages[0].content[0] is of type 'str'; this model reads only text"),
        ({"role": "user", "content": None}, "messages[0] needs a content that is a string or a list of text parts"),
        ({"role": "user"}, "messages[0] needs a content that is a string or a list of text parts"),
        ({"content": "a"}, "messages[0] needs a role"),
    ],
)
def test_messages_that_are_none(message, why):
    error = refusal("x", [message])
    assert (error.message, error.param, error.status) == (why, "messages", 400)


def test_no_messages():
    assert refusal("x", []).message == "messages is empty"


def test_a_call_of_tools_has_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert JinjaChatTemplate({"default": "[{{ messages[0].content }}]"}).render([call]) == "[]"


def test_the_template_refuses():
    error = refusal("{{ raise_exception('roles must alternate') }}")
    assert error.message == "the chat template refuses these messages: roles must alternate"
    assert error.param == "messages"


def test_the_template_fails():
    assert refusal("{{ messages[0].content + 1 }}").message.startswith("the chat template cannot render these messages: ")
    assert refusal("{{ messages[0].name.first }}").param == "messages"
    assert refusal("{{ 1 / 0 }}").param == "messages"


def test_variables_of_the_request():
    template = JinjaChatTemplate({"default": "{{ enable_thinking }}{{ bos_token }}"}, {"bos_token": "<s>"})
    assert template.render(HELLO, enable_thinking=False) == "False<s>"
    error = refusal("x", messages=HELLO, raise_exception=1)
    assert error.message == "raise_exception cannot be given to the chat template"
    assert error.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.open }}",
        "{% for i in range(99999999) %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'long ' }}{% endfor %}{% endfor %}",
        "{{ 'a' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ 9 ** 99999 ** 9 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ '%(a)500000000d' % {'a': 1} }}",
        "{{ '%*d' | format(500000000, 1) }}",
        "{{ '{:>500000000}'.format(1) }}",
        "{{ 'a'.ljust(500000000) }}",
        "{{ 'a' | center(500000000) }}",
        "{{ [1] | slice(500000000) | list }}",
        "{{ lipsum(n=500000000) }}",
        "{% set n = namespace(t='a' * 99) %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "{% set n = namespace(t='a' * 99) %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(source):
    assert refusal(source).param == "messages"


def test_calls_are_counted_like_rounds(monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_ROUNDS", 1000)
    calls = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}"
    assert refusal(calls).message == "the chat template cannot render these messages: it loops and calls more than 1000 times"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%5d|%s' % (12345, 2) }}", "12345|2"),
        ("{{ '%s' | format(99999) }}", "99999"),
        ("{{ '{:>4} {}'.format(3, 99999) }}", "   3 99999"),
        ("{{ 'a'.center(3) }}{{ 'b' | indent(2, true) }}", " a   b"),
        ("{{ {'most': 99999} | tojson | indent }}", '{"most": 99999}'),
        ("{{ 'x' ~ (1 + 99999) ~ 'y' }}", "x100000y"),
        ("{{ 'long'.find('g', 20000) }}", "-1"),
    ],
)
def test_what_is_no_giant_is_made(source, text):
    assert JinjaChatTemplate({"default": source}).render(HELLO) == text


def test_the_budget_of_rounds_is_each_rendering_s_own():
    template = JinjaChatTemplate({"default": "{% for i in range(rounds) %}{% endfor %}{{ '-' * 20 }}"})
    for _ in range(3):
        assert template.render(HELLO, rounds=int(MAX_ROUNDS * 0.4)) == "-" * 20


def test_what_a_template_writes_is_bounded():
    source = "{% set text = messages[0].content %}{% for i in range(100) %}{{ text }}{% endfor %}"
    error = refusal(source, [{"role": "user", "content": "x" * 100_000}])
    assert error.message == "the chat template cannot render these messages: it writes more than 8000000 characters"


def test_the_date():
    assert len(JinjaChatTemplate({"default": "{{ strftime_now('%Y-%m-%d') }}"}).render(HELLO)) == 10


@pytest.mark.demo
def test_the_demo_speaks_its_own_format(demo_folder):
    text = load_chat_template(demo_folder, None, Named()).render(HELLO)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
