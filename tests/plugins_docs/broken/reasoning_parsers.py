"""A sound parser of reasoning that ends with a line, and what the contract has to say about unsound ones."""

from core.interfaces.parsers import ReasoningParser, ReasoningStream
from core.testing import ReasoningParserContract

MARK = "SO:"


class UpToMark(ReasoningStream):
    def __init__(self, thinking):
        self.thinking, self.pending = thinking, ""

    def push(self, text, token_ids=()):
        if not self.thinking:
            return "", text
        self.pending += text
        before, mark, after = self.pending.partition(MARK)
        if mark:
            self.thinking, self.pending = False, ""
            return before, after
        held = self.held()
        ready, self.pending = self.pending[: len(self.pending) - held], self.pending[len(self.pending) - held :]
        return ready, ""

    def held(self):
        return next((length for length in (2, 1) if self.pending.endswith(MARK[:length])), 0)

    def final(self, *, cut=False):
        rest, self.pending = self.pending, ""
        return "" if cut else rest, ""


class Marked(ReasoningParser):
    stream_class = UpToMark

    def stream(self, prompt):
        return self.stream_class(not prompt.endswith(MARK))

    def form(self, prompt):
        return [] if prompt.endswith(MARK) else [{"until": MARK}]


class Contract(ReasoningParserContract):
    __test__ = False
    implementation = Marked
    examples = (
        ("", "one, two.SO:SO: three", "one, two.", "SO: three"),
        ("", "one S S", "one S S", ""),
        ("x SO:", "three", "", "three"),
    )

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True

    class implementation(Marked):
        """Line ends before the mark are no part of the reasoning."""

        class stream_class(UpToMark):
            def push(self, text, token_ids=()):
                reasoning, answer = super().push(text)
                return reasoning.replace("\n", ""), answer


class TestKeepsTheMark(Contract):
    __test__ = True
    caught_by = "test_reasoning_is_told_from_the_answer"

    class implementation(Marked):
        def stream(self, prompt):
            return UpToMark(True)


class TestHoldsNothing(Contract):
    __test__ = True
    caught_by = "test_it_does_not_matter_how_a_text_is_cut"

    class implementation(Marked):
        class stream_class(UpToMark):
            def held(self):
                return 0


class TestRaises(Contract):
    __test__ = True
    caught_by = "test_no_text_makes_it_raise"

    class implementation(Marked):
        class stream_class(UpToMark):
            def push(self, text, token_ids=()):
                if "{" in text or "<" in text:
                    raise ValueError("no mark of mine")
                return super().push(text)


class TestHoldsEverything(Contract):
    __test__ = True
    caught_by = "test_text_is_told_as_soon_as_it_is_certain"

    class implementation(Marked):
        class stream_class(UpToMark):
            def push(self, text, token_ids=()):
                self.all = getattr(self, "all", "") + text
                return "", ""

            def final(self, *, cut=False):
                return super().push(getattr(self, "all", "")) if self.thinking else ("", self.all)


class TestShowsWhatWasCutOff(Contract):
    __test__ = True
    caught_by = "test_what_is_cut_off_shows_no_part_of_a_mark"

    class implementation(Marked):
        class stream_class(UpToMark):
            def final(self, *, cut=False):
                return super().final()


class TestSharesItsState(Contract):
    __test__ = True
    caught_by = "test_outputs_are_apart"

    class implementation(Marked):
        def stream(self, prompt):
            self.only = getattr(self, "only", None) or super().stream(prompt)
            return self.only


class TestFormIsAnother(Contract):
    __test__ = True
    caught_by = "test_it_reads_the_form_it_gives"

    class implementation(Marked):
        def form(self, prompt):
            return [{"until": "THUS:"}]
