import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.compose import compose
from core.compose.configuration import read
from core.compose.first_pass import first_pass
from core.errors import UserError
from core.offers import Alias, RulesOffer
from core.plugin_manager import PluginManager
from tests.compose.fakes import CPU, Point, manager, plugin, sampler

TINY = ["--model", "random:tiny"]


def configured(*argv, env=None, overrides=None, file=None, installed=None):
    first = first_pass([*argv, *(["--config", str(file)] if file else [])], env or {}, overrides)
    return read(first, installed or manager())


def problems(*argv, **more):
    return [str(problem) for problem in configured(*argv, **more).problems]


def test_flags_beat_the_environment_beats_the_file_beats_defaults(tmp_path):
    file = tmp_path / "demo.toml"
    file.write_text("seed = 1\nblock_size = 16\nmax_waiting = 7\n\n[openai_http]\nport = 1\nhost = 'file'\n")
    env = {"DOVETAIL_SEED": "2", "DOVETAIL_BLOCK_SIZE": "32", "DOVETAIL_OPENAI_HTTP__PORT": "2"}
    found = configured("--seed", "3", env=env, file=file)
    assert (found.settings["seed"], found.origin("seed")) == (3, "--seed")
    assert (found.settings["block_size"], found.origin("block_size")) == (32, "$DOVETAIL_BLOCK_SIZE")
    assert (found.settings["max_waiting"], found.origin("max_waiting")) == (7, f"{file}:3")
    assert (found.settings["max_num_seqs"], found.origin("max_num_seqs")) == (None, "default")
    assert found.section("openai_http") == ({"port": 2, "host": "file", "tls": False, "allowed": ()}, [])
    assert found.origin("openai_http", "port") == "$DOVETAIL_OPENAI_HTTP__PORT"
    assert found.origin("openai_http", "host") == f"{file}:7"
    assert found.problems == []


@settings(deadline=None, max_examples=60)
@given(st.sets(st.sampled_from(["file", "env", "flag", "call"])))
def test_the_highest_source_that_speaks_wins(tmp_path_factory, sources):
    file = tmp_path_factory.mktemp("config") / "c.toml"
    file.write_text("seed = 1\n" if "file" in sources else "")
    found = configured(
        *(["--seed=3"] if "flag" in sources else []),
        env={"DOVETAIL_SEED": "2"} if "env" in sources else {},
        overrides={"seed": 4} if "call" in sources else {},
        file=file,
    )
    expected = (0, "default")
    for name, value, origin in (
        ("file", 1, f"{file}:1"),
        ("env", 2, "$DOVETAIL_SEED"),
        ("flag", 3, "--seed"),
        ("call", 4, "LLM(seed=...)"),
    ):
        if name in sources:
            expected = (value, origin)
    assert (found.settings["seed"], found.origin("seed")) == expected


@pytest.mark.parametrize(
    "argv",
    [["--max-model-len", "64"], ["--max_model_len", "64"], ["--max-model-len=64"], ["--max_model_len=64"]],
)
def test_both_spellings_and_both_ways_to_give_a_value(argv):
    assert configured(*argv).settings["max_model_len"] == 64


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--openai-http-tls"], True),
        (["--no-openai-http-tls"], False),
        (["--openai-http-tls=false"], False),
        (["--openai-http-tls=yes"], True),
        (["--openai_http_tls"], True),
    ],
)
def test_booleans(argv, value):
    assert configured(*argv).section("openai_http")[0]["tls"] is value


def test_lists_come_from_commas_json_and_repetition():
    argv = ["--openai-http-allowed", "a, b", "--openai-http-allowed", "c", "--served-model-name", '["x", "y,z"]']
    found = configured(*argv, env={"DOVETAIL_PLUGINS": "plain,openai-http"})
    assert found.section("openai_http")[0]["allowed"] == ("a", "b", "c")
    assert found.settings["served_model_name"] == ("x", "y,z")
    assert found.settings["plugins"] == ("plain", "openai_http")


def test_words_of_a_choice_in_any_case():
    assert configured("--dtype", "BFloat16").settings["dtype"] == "bfloat16"


def test_a_whole_table_as_json_in_the_environment():
    found = configured(env={"DOVETAIL_OPENAI_HTTP": '{"port": 9, "allowed": ["a"]}', "dovetail_seed": "5"})
    assert found.section("openai_http")[0]["port"] == 9
    assert found.origin("openai_http", "port") == "$DOVETAIL_OPENAI_HTTP"
    assert (found.settings["seed"], found.origin("seed")) == (5, "$dovetail_seed")


def test_an_empty_variable_says_nothing():
    assert configured(env={"DOVETAIL_SEED": "", "OLD_PORT": ""}).given == {}


def test_aliases_set_settings_and_keep_their_own_origin():
    found = configured("--port", "81", env={"FD_MODEL_SOURCE": "MODELSCOPE", "FD_MODEL_CACHE": "/x"})
    assert found.section("openai_http")[0]["port"] == 81
    assert found.origin("openai_http", "port") == "--port"
    assert (found.settings["model_source"], found.origin("model_source")) == ("modelscope", "$FD_MODEL_SOURCE")
    assert found.settings["model_cache"] == "/x"
    assert configured(env={"OLD_PORT": "82"}).section("openai_http")[0]["port"] == 82


def rejection(**more):
    aliases = (
        Alias("as FastDeploy says it", env="FD_SAMPLING_CLASS", value="rejection", chooses="rejection"),
        Alias("its own word", flag="--sampler", value="rej", chooses="rejection"),
        Alias("merely given", flag="--use-rejection", chooses="rejection"),
    )
    return Point("sampler_rejection", plugin("rejection_module", register_samplers=[sampler("rejection", aliases=aliases)]))


@pytest.mark.parametrize(
    ("argv", "env", "overrides", "origin"),
    [
        ([], {"FD_SAMPLING_CLASS": "Rejection"}, {}, "$FD_SAMPLING_CLASS"),
        (["--sampler", "rej"], {}, {}, "--sampler"),
        (["--use-rejection"], {}, {}, "--use-rejection"),
        (["--use_rejection"], {}, {}, "--use-rejection"),
        ([], {}, {"use_rejection": True}, "LLM(use_rejection=...)"),
        (["--plugins", "sampler_rejection"], {}, {}, "--plugins"),
    ],
)
def test_a_feature_is_chosen_by_the_flags_its_users_know(argv, env, overrides, origin):
    plan = compose([*TINY, *argv], env=env, overrides=overrides, probe=CPU, manager=manager(rejection()))
    choice = plan.chosen("sampler")
    assert (choice.name, choice.plugin, choice.origin) == ("rejection", "sampler_rejection", origin)
    assert choice.provenance == "testdist 1.0 (rejection_module)"


def test_a_feature_that_was_switched_off_above_is_off(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('sampler = "rejection"\n')
    argv = [*TINY, "--no-use-rejection", "--config", str(file)]
    assert compose(argv, env={}, probe=CPU, manager=manager(rejection())).chosen("sampler").name == "standard"
    call = {"model": "random:tiny", "use_rejection": False}
    assert compose([], env={}, overrides=call, probe=CPU, manager=manager(rejection())).chosen("sampler").name == "standard"


def test_an_alias_for_a_feature_that_is_no_setting_adds_its_plugin():
    offer = RulesOffer(name="house", summary="rules", aliases=(Alias("house", flag="--house-rules", chooses="house"),))
    installed = manager(Point("house", plugin("house_module", register_rules=[offer])))
    assert "house" not in compose(TINY, env={}, probe=CPU, manager=installed).plugins
    plan = compose([*TINY, "--house-rules"], env={}, probe=CPU, manager=installed)
    assert ("house", "--house-rules") in [(choice.plugin, choice.origin) for choice in plan.choices]


def test_call_arguments_take_tables_and_a_config_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("seed = 3\n")
    found = configured(overrides={"config": str(file), "openai_http": {"port": 5}, "openai_http_host": "h", "revision": None})
    assert found.settings["seed"] == 3
    assert found.section("openai_http")[0] == {"port": 5, "host": "h", "tls": False, "allowed": ()}
    assert found.origin("openai_http", "port") == "LLM(openai_http=...)"


def test_an_empty_model_is_none():
    [problem] = configured("--model=").problems
    assert str(problem) == "model = '': string should have at least 1 character\n  set by: --model"


def test_a_value_where_a_plugin_has_a_table(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("openai_http = 3\n")
    [problem] = configured(file=file).problems
    assert str(problem) == (
        "plugin openai_http has a table of settings, not the value 3\n"
        f"  set by: {file}:1\n"
        "  remedy: [openai_http], and its settings below"
    )


def test_all_mistakes_of_all_sources_at_once(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("max_modle_len = 3\n[openai_http]\nprot = 1\n[opnai_http]\nport = 2\n")
    env = {"DOVETAIL_DTYP": "float16", "DOVETAIL_OPENAI_HTTP__HOTS": "x", "DOVETAIL_GRPH__X": "1", "DOVETAIL_PLAIN": "x"}
    argv = ["--max-num-seqs", "many", "--dtype", "bfloat", "--blok-size", "3", "--port", "99999", "stray", "--seed"]
    found = configured(*argv, env=env, file=file)
    texts = [str(problem) for problem in [*found.problems, *found.section("openai_http")[1]]]
    assert sorted(texts) == sorted(
        [
            f"there is no setting 'max_modle_len'; did you mean 'max_model_len'?\n"
            f"  set by: {file}:1\n  remedy: --help lists every setting",
            f"plugin openai_http has no setting 'prot'; did you mean 'port'?\n"
            f"  set by: {file}:3\n  remedy: its settings: host, port, tls, allowed",
            f"there is no plugin 'opnai_http' to give 'port' to; did you mean 'openai_http'?\n"
            f"  set by: {file}:5\n  remedy: --list-plugins shows what is installed",
            "there is no setting 'dtyp'; did you mean DOVETAIL_DTYPE?\n"
            "  set by: $DOVETAIL_DTYP\n  remedy: unset it, or see --help for every setting",
            "plugin openai_http has no setting 'hots'; did you mean 'host'?\n"
            "  set by: $DOVETAIL_OPENAI_HTTP__HOTS\n  remedy: its settings: host, port, tls, allowed",
            "there is no plugin 'grph' to give 'x' to\n"
            "  set by: $DOVETAIL_GRPH__X\n  remedy: --list-plugins shows what is installed",
            "plugin plain has no settings\n  set by: $DOVETAIL_PLAIN\n  remedy: drop it",
            "max_num_seqs = 'many': input should be a valid integer, unable to parse string as an integer\n"
            "  set by: --max-num-seqs",
            "dtype = 'bfloat': input should be 'auto', 'bfloat16', 'float16' or 'float32'; did you mean 'bfloat16'?\n"
            "  set by: --dtype",
            "there is no flag --blok-size; did you mean '--block-size'?\n  remedy: --help lists every flag",
            "'stray' is no flag\n  remedy: if it is the model: --model stray",
            "--seed needs a value\n  remedy: --seed VALUE",
            "openai_http.port = '99999': input should be less than or equal to 65535\n  set by: --port",
        ]
    )


def test_two_flags_that_contradict_each_other():
    installed = manager(rejection())
    assert problems("--sampler", "standard", "--use-rejection", installed=installed) == [
        "sampler is said to be 'standard' and 'rejection'\n"
        "  set by: --sampler, --use-rejection\n"
        "  remedy: drop --sampler or --use-rejection"
    ]
    assert problems("--sampler", "rejection", "--no-use-rejection", installed=installed) == [
        "sampler is said to be 'rejection' and not 'rejection'\n"
        "  set by: --sampler, --no-use-rejection\n"
        "  remedy: drop --sampler or --no-use-rejection"
    ]
    assert problems("--sampler", "rejection", "--use-rejection", installed=installed) == []


def test_of_one_flag_with_two_values_the_last_is_taken_with_a_warning():
    found = configured("--max-model-len", "64", "--max_model_len=32", "--openai-http-tls", "--openai-http-tls")
    assert found.problems == []
    assert found.settings["max_model_len"] == 32
    assert [str(remark) for remark in found.remarks] == [
        "--max-model-len is given twice: '32', which comes last, is taken, and not '64'\n  remedy: keep one of them"
    ]
    assert configured("--max-model-len", "64", "--max-model-len", "64").remarks == []


def test_two_config_files(tmp_path):
    with pytest.raises(UserError) as error:
        configured("--config", "one.toml", "--config", "two.toml")
    assert str(error.value) == "--config is given twice, with 'one.toml' and 'two.toml'\n  remedy: keep one of them"


def test_on_or_off_behind_a_switch():
    assert problems("--openai-http-tls", "false") == [
        "'false' is no flag, and --openai-http-tls takes no value behind a space\n  remedy: --openai-http-tls=false"
    ]


def test_a_switch_is_no_number(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("max_model_len: yes\n")
    assert problems(file=file) == [f"max_model_len = True: input should be a number\n  set by: {file}:1"]


def test_of_a_value_no_more_is_shown_than_can_be_read(tmp_path):
    file = tmp_path / "c.yaml"
    tens = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    tens += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file.write_text("\n".join([*tens, "model: *a8"]))
    found = [problem for problem in problems(file=file) if problem.startswith("model = ")]
    assert len(found) == 1
    assert len(found[0]) < 2000


def test_no_step_may_take_longer_than_a_clock_can_count():
    assert problems("--step-timeout", "inf") == [
        "step_timeout = 'inf': input should be less than or equal to 1000000\n  set by: --step-timeout"
    ]


def test_a_list_in_a_table_may_be_one_text(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("openai_http: {allowed: 'a, b'}\n")
    assert configured(file=file).section("openai_http")[0]["allowed"] == ("a", "b")


def test_no_message_has_a_secret(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("api_key = 'hidden-1'\n[openai_http]\napi_key = {hidden-2 = 1}\n")
    found = read(first_pass(["--config", str(file)], {}), PluginManager.discover())
    texts = [str(problem) for problem in [*found.problems, *found.section("openai_http")[1]]]
    assert texts == [
        f"openai_http.api_key is said to be *** and ***\n  set by: {file}:1, {file}:3\n  remedy: drop {file}:1 or {file}:3"
    ]
    file.write_text("[openai_http]\napi_key = {hidden-2 = 1}\n")
    found = read(first_pass(["--config", str(file)], {}), PluginManager.discover())
    assert [problem.what for problem in found.section("openai_http")[1]] == [
        "openai_http.api_key = ***: input should be a list"
    ]


def test_a_variable_with_a_value_nobody_knows():
    assert problems(env={"FD_SAMPLING_CLASS": "rejecton"}, installed=manager(rejection())) == [
        "FD_SAMPLING_CLASS has no value 'rejecton'; did you mean 'rejection'?\n"
        "  set by: $FD_SAMPLING_CLASS\n"
        "  remedy: one of: rejection"
    ]


def test_a_known_flag_whose_plugin_is_not_there():
    assert problems("--enable-chunked-prefill", installed=manager(without=["prefill_chunked"])) == [
        "--enable-chunked-prefill belongs to the plugin prefill_chunked, which is not installed\n"
        "  remedy: install prefill_chunked"
    ]
    assert problems("--enable-chunked-prefill", installed=manager(blocked=["prefill_chunked"])) == [
        "--enable-chunked-prefill belongs to the plugin prefill_chunked, which is blocked\n"
        "  remedy: drop prefill_chunked from --without"
    ]
    broken = manager(Point("prefill_chunked", ImportError("no kernels")), without=["prefill_chunked"])
    [problem] = problems(overrides={"enable_chunked_prefill": True}, installed=broken)
    assert problem.startswith(
        "--enable-chunked-prefill belongs to the plugin prefill_chunked, which is broken\n"
        "  set by: LLM(enable_chunked_prefill=...)\n"
        "  remedy: its cause: ImportError: no kernels ("
    )
    assert problems(overrides={"enable_chunked_prefill": False}, installed=manager(without=["prefill_chunked"])) == []


def test_flags_that_two_plugins_claim_are_a_conflict_of_both():
    one = Point("one", plugin("m1", register_samplers=[sampler("one", aliases=(Alias("x", flag="--x", chooses="one"),))]))
    two = Point("two", plugin("m2", register_samplers=[sampler("two", aliases=(Alias("x", flag="--x", chooses="two"),))]))
    installed = manager(one, two)
    for _ in range(2):  # it is told once, however often is composed
        [problem] = configured(installed=installed).problems
    assert (installed.get("one").state, installed.get("two").state) == ("loaded", "loaded")
    assert str(problem) == (
        "two plugins claim --x: one of testdist 1.0 (m1); two of testdist 1.0 (m2)\n"
        "  set by: installed distributions\n"
        "  remedy: leave one out: --without one, or --without two"
    )


def test_an_alias_of_no_setting_breaks_its_plugin():
    bad = Point("bad", plugin("m", register_samplers=[sampler("bad", aliases=(Alias("x", flag="--x", sets="nothing"),))]))
    installed = manager(bad)
    assert configured("--x", "1", installed=installed).problems
    assert installed.get("bad").error == "its alias --x sets nothing, which is no setting"


def test_a_plugin_with_the_name_of_a_setting_is_broken():
    installed = manager(Point("model", plugin("m", register_samplers=[sampler("x")])))
    configured(installed=installed)
    assert installed.get("model").error == "its name is a setting of the core: model"


def test_a_section_whose_values_disagree_names_all_their_origins():
    from pydantic import Field, model_validator

    from core.offers import Section

    class Pair(Section, frozen=True):
        low: int = Field(1, description="low")
        high: int = Field(2, description="high")

        @model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) is above high ({self.high})")
            return self

    installed = manager(Point("pair", plugin("m", register_samplers=[sampler("p", settings=Pair)])))
    with pytest.raises(UserError) as error:
        compose(
            [*TINY, "--plugins", "pair", "--pair-low", "5"],
            env={"DOVETAIL_PAIR__HIGH": "4"},
            probe=CPU,
            manager=installed,
        )
    assert str(error.value) == "pair: low (5) is above high (4)\n  set by: $DOVETAIL_PAIR__HIGH, --pair-low"
