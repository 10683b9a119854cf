"""A sound parser of one call a line, and what the contract has to say about unsound ones."""

import json

from core.interfaces.parsers import CallBegins, CallGrows, Said, ToolParser, ToolStream
from core.testing import ToolParserContract
from core.testing.parsers import CITY

MARK = "CALL "


class Lines(ToolStream):
    """``CALL name {arguments}``, alone on a line."""

    def __init__(self):
        self.pending = ""

    def push(self, text, token_ids=()):
        self.pending += text
        pieces = []
        while "\n" in self.pending:
            line, self.pending = self.pending.split("\n", 1)
            pieces += self.line(line, "\n")
        if self.pending and not self.may_begin(self.pending):
            pieces.append(Said(self.pending))
            self.pending = ""
        return pieces

    def final(self, *, cut=False):
        rest, self.pending = self.pending, ""
        pieces = self.line(rest, "")
        return [] if cut and pieces == [Said(rest)] else pieces

    def may_begin(self, text):
        return MARK.startswith(text) or text.startswith(MARK)

    def line(self, line, end):
        name, _, arguments = line.removeprefix(MARK).partition(" ")
        try:
            if not line.startswith(MARK) or not name or not isinstance(json.loads(arguments), dict):
                raise ValueError
        except ValueError:
            return [Said(line + end)] if line + end else []
        return [CallBegins(name), CallGrows(arguments)]


class OneALine(ToolParser):
    stream_class = Lines

    def stream(self, tools):
        return self.stream_class()

    def calls(self, tools):
        return {
            "any_of": [[{"text": f"{MARK}{tool.name} "}, {"json_schema": tool.parameters}, {"text": "\n"}] for tool in tools]
        }

    def form(self, tools, *, several):
        return [{"repeat": [self.calls(tools)], "least": 1, "most": 3 if several else 1}]

    def strict_form(self, tools, *, several):
        return [{"repeat": [self.calls(tools)], "least": 0, "most": 3 if several else 1}, {"anything": True}]


class Contract(ToolParserContract):
    __test__ = False
    implementation = OneALine
    plain = ("CALL", "CALL me", "CALL get_time no")
    examples = (
        (f"CALL get_weather {json.dumps(CITY)}", ("", [("get_weather", CITY)])),
        ("CALL get_time {}\nCALL get_time {}\nDone.", ("Done.", [("get_time", {})] * 2)),
    )

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True


class TestSwallowsArguments(Contract):
    __test__ = True
    caught_by = "test_calls_are_told"

    class implementation(OneALine):
        class stream_class(Lines):
            def line(self, line, end):
                return [CallGrows("{}") if isinstance(piece, CallGrows) else piece for piece in super().line(line, end)]


class TestStripsText(Contract):
    __test__ = True
    caught_by = "test_text_without_a_call_is_told_as_it_is"

    class implementation(OneALine):
        class stream_class(Lines):
            def push(self, text, token_ids=()):
                return super().push(text.replace("\n\n", "\n"))


class TestHoldsNothing(Contract):
    __test__ = True
    caught_by = "test_it_does_not_matter_how_a_text_is_cut"

    class implementation(OneALine):
        class stream_class(Lines):
            def may_begin(self, text):
                return text.startswith(MARK)


class TestRaises(Contract):
    __test__ = True
    caught_by = "test_no_text_makes_it_raise"

    class implementation(OneALine):
        class stream_class(Lines):
            def line(self, line, end):
                if line.startswith(f"{MARK}get_") and line.count("{") != line.count("}"):
                    raise ValueError("this is no call")
                return super().line(line, end)


class TestHoldsEverything(Contract):
    __test__ = True
    caught_by = "test_text_is_told_as_soon_as_it_is_certain"

    class implementation(OneALine):
        class stream_class(Lines):
            def may_begin(self, text):
                return True


class TestShowsWhatWasCutOff(Contract):
    __test__ = True
    caught_by = "test_what_is_cut_off_shows_no_part_of_a_call"

    class implementation(OneALine):
        class stream_class(Lines):
            def final(self, *, cut=False):
                return super().final()


class TestSharesItsState(Contract):
    __test__ = True
    caught_by = "test_outputs_are_apart"

    class implementation(OneALine):
        def stream(self, tools):
            self.only = getattr(self, "only", None) or super().stream(tools)
            return self.only


class TestFormIsAnother(Contract):
    __test__ = True
    caught_by = "test_it_reads_the_form_it_gives"

    class implementation(OneALine):
        def form(self, tools, *, several):
            return [{"text": "> "}, *super().form(tools, several=several)]


class TestStrictFormHasToCall(Contract):
    __test__ = True
    caught_by = "test_it_reads_the_strict_form_it_gives"

    class implementation(OneALine):
        def strict_form(self, tools, *, several):
            return self.form(tools, several=several)
