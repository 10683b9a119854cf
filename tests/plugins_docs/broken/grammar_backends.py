"""A sound backend that knows choices alone, and what the contract has to say about unsound ones."""

import json

import numpy as np

from core.errors import RequestError
from core.interfaces.grammar import GrammarBackend, Matcher
from core.testing import GrammarBackendContract


class OneOf(Matcher):
    def __init__(self, choices, vocabulary):
        self.left, self.vocabulary, self.trouble = choices, vocabulary, False

    def allowed(self):
        bits = np.zeros(-(-len(self.vocabulary.tokens) // 32) * 32, np.uint8)
        for token, word in enumerate(self.vocabulary.tokens):
            fits = token not in self.vocabulary.special and any(each.startswith(word) for each in self.left)
            bits[token] = self.trouble or fits or (token in self.vocabulary.eos and b"" in self.left)
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token):
        word = self.vocabulary.tokens[token]
        left = [each[len(word) :] for each in self.left if each.startswith(word)]
        if token in self.vocabulary.special or not left:
            self.trouble = True
            raise ValueError("not one of the choices")
        self.left = left
        self.done = left == [b""]


class Choices(GrammarBackend):
    matcher_class = OneOf

    def attach(self, vocabulary):
        self.vocabulary = vocabulary()

    def matcher(self, grammar):
        if grammar.kind != "choice" or grammar.text == "[]":
            raise RequestError("choices only", param="grammar")
        return self.matcher_class([each.encode() for each in json.loads(grammar.text)], self.vocabulary)


class Contract(GrammarBackendContract):
    __test__ = False
    kinds = ("choice",)
    implementation = Choices

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True


class TestAllowsWhatDoesNotFit(Contract):
    __test__ = True
    caught_by = "test_outputs_have_the_asked_form"

    class implementation(Choices):
        class matcher_class(OneOf):
            def accept(self, token):
                word = self.vocabulary.tokens[token]
                self.left = [each[len(word) :] for each in self.left]
                self.done = b"" in self.left


class TestForgetsAChoice(Contract):
    __test__ = True
    caught_by = "test_every_output_of_the_form_is_allowed"

    class implementation(Choices):
        class matcher_class(OneOf):
            def __init__(self, choices, vocabulary):
                super().__init__(choices[:1], vocabulary)


class TestAcceptsAnything(Contract):
    __test__ = True
    caught_by = "test_what_was_not_allowed_is_not_accepted"

    class implementation(Choices):
        class matcher_class(OneOf):
            def accept(self, token):
                pass


class TestSharesItsState(Contract):
    __test__ = True
    caught_by = "test_matchers_are_apart"

    class implementation(Choices):
        def matcher(self, grammar):
            self.only = getattr(self, "only", None) or super().matcher(grammar)
            return self.only


class TestTakesAnyGrammar(Contract):
    __test__ = True
    caught_by = "test_what_is_no_grammar_is_refused"

    class implementation(Choices):
        def matcher(self, grammar):
            return self.matcher_class([b"yes"], self.vocabulary)
