import re

from core.bench.serving import Served, main


def test_served_beside_alone(capsys):
    flags = [
        "--clients",
        "2",
        "--input-len",
        "8",
        "--output-len",
        "12",
        "--repeat",
        "1",
        "--model",
        "random:tiny",
        "--threads",
        "1",
    ]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 clients, 8 tokens in, 12 out; medians of 1"
    alone, served, spent = (float(re.search(r"([\d.]+) (?:tok/s|us)", line)[1]) for line in lines[1:])
    assert alone > 0
    assert served > 0
    assert 0 <= spent < 1e6


def test_what_is_kept_is_of_the_same_repetition():
    assert Served((100.0, 50.0, 10.0), (90.0, 25.0, 9.5), (0.0, 0.0, 0.0)).kept == 0.9


def test_a_composition_that_is_refused_is_told(capsys):
    assert main(["--model", "random:nothing", "--clients", "1"]) == 1
    assert "the server ended before it listened" in capsys.readouterr().err
