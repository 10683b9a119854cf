"""The table as a whole: every flag and variable that FastDeploy documents is known, and each is told of as the table says."""

import pytest

from core.compose.configuration import read
from core.compose.first_pass import first_pass
from core.compose.vocabulary import Vocabulary
from core.plugin_manager import PluginManager
from fastdeploy_compat import theirs
from fastdeploy_compat.words import ALIASES, FLAGS, VARIABLES, WORDS

INSTALLED = PluginManager.discover()


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(INSTALLED)


def told(argv=(), env=None):
    found = read(first_pass(argv, env or {}), INSTALLED)
    return [str(problem) for problem in found.problems], [str(remark) for remark in found.remarks]


@pytest.mark.parametrize("name", [name for group in theirs.FLAGS.values() for name in group])
def test_every_flag_is_known(vocabulary, name):
    assert vocabulary.find(name.replace("_", "-")) is not None


@pytest.mark.parametrize("name", theirs.VARIABLES)
def test_every_variable_is_known(vocabulary, name):
    word = vocabulary.find(name) or vocabulary.begins(name)
    assert word is not None
    assert not any(foreign.effect == "unknown" for foreign in word.foreign)


@pytest.mark.parametrize("word", FLAGS, ids=lambda word: f"{word.name}{','.join(word.values)}")
def test_every_flag_is_told_of_as_the_table_says(vocabulary, word):
    assert word.values or not vocabulary.words[word.name].has_meaning, "it means something here now: delete its line"
    for value in word.values or ("7",):
        problems, remarks = told([word.name] if word.switch else [word.name, value.replace("*", "}")])
        assert len(problems) == (word.effect in ("refuses", "later"))
        assert len(remarks) == (word.effect == "warns")
        for text in (*problems, *remarks):
            assert word.name.replace("_", "-") in text
            assert word.reason in text
    for fine in word.fine:
        assert told([word.name, fine]) == ([], [])


@pytest.mark.parametrize("word", VARIABLES, ids=lambda word: word.name)
def test_every_variable_is_told_of_as_the_table_says(vocabulary, word):
    known = vocabulary.find(word.name)
    assert known is None or not known.has_meaning, "it means something here now: delete its line"
    name = word.name.replace("*", "SOMETHING")
    problems, remarks = told(env={name: "7"})
    assert len(problems) == (word.effect in ("refuses", "later", "unknown"))
    assert len(remarks) == (word.effect == "warns")
    for fine in word.fine:
        assert told(env={name: fine}) == ([], [])


def test_no_word_stands_twice_and_every_reason_is_half_a_sentence():
    names = [(word.name, word.values) for word in WORDS]
    assert len(set(names)) == len(names)
    for word in WORDS:
        assert word.reason
        assert not word.reason.endswith(".")
    assert all(alias.summary.endswith("(FastDeploy)") for alias in ALIASES)


def test_those_with_another_name_here():
    argv = ["--timeout-graceful-shutdown", "0", "--scheduler-max-size", "-1"]
    found = read(first_pass(argv, {"FD_DEBUG": "1"}), INSTALLED)
    assert found.problems == []
    assert found.settings["drain_timeout"] == float("inf")
    assert found.settings["max_waiting"] == 2**31 - 1
    assert found.settings["log_level"] == "debug"
    assert read(first_pass([], {"FD_LOG_LEVEL": "WARNING"}), INSTALLED).settings["log_level"] == "warning"
