"""What all contracts share: tests that are inherited, and cannot be overridden without saying so."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

Test = Callable[..., Any]


class Contract:
    """Base of every contract class.

    A class of the kit is declared with ``kit=True``; its ``test_*`` functions are the contract. A subclass without it is an
    author's: every test it inherits from the kit has to be the kit's own. ``xfail`` maps the names of tests that cannot
    pass to the reason; each still runs, is reported as an expected failure, and fails when it passes after all.
    """

    xfail: ClassVar[Mapping[str, str]] = {}
    _contract: ClassVar[Mapping[str, Test]] = {}

    def __init_subclass__(cls, *, kit: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kit:
            inherited: dict[str, Test] = {}
            for parent in reversed(cls.__mro__[1:]):
                inherited.update(vars(parent).get("_contract", {}))
            cls._contract = inherited | own_tests(cls)
            return
        for name, test in cls._contract.items():
            if name in cls.xfail and vars(cls).get(name) is None and name not in vars(cls):
                setattr(cls, name, expected_to_fail(test, cls.xfail[name]))
            elif name not in cls.xfail and original(getattr(cls, name, None)) is test:
                setattr(cls, name, test)  # a parent's expected failure that this class does not share
        broken = breaches(cls)
        if broken:
            raise TypeError("\n".join(broken))

    def test_the_contract_is_whole(self) -> None:
        """No test of the contract was replaced after the class was defined."""
        broken = breaches(type(self))
        assert not broken, "\n".join(broken)


Contract._contract = {"test_the_contract_is_whole": Contract.test_the_contract_is_whole}


def own_tests(cls: type) -> dict[str, Test]:
    return {
        name: value for name, value in vars(cls).items() if name.startswith("test_") and isinstance(value, types.FunctionType)
    }


def original(test: Any) -> Any:
    """The kit's test behind an expected failure; any other thing as it is."""
    return getattr(test, "contract_test", test)


def expected_to_fail(test: Test, reason: str) -> Test:
    """A copy of a test that is marked as an expected failure; the mark on the kit's own function would reach every subclass."""
    assert isinstance(test, types.FunctionType)
    copy = types.FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    copy.__dict__.update(test.__dict__)
    copy.__kwdefaults__ = test.__kwdefaults__
    copy.__doc__ = test.__doc__
    mark = pytest.mark.xfail(reason=reason, strict=True).mark
    copy.__dict__["pytestmark"] = [*test.__dict__.get("pytestmark", []), mark]
    copy.__dict__["contract_test"] = test
    return copy


def breaches(cls: type[Contract]) -> list[str]:
    """In which ways an author's class departs from the kit's tests without saying so."""
    broken = []
    for name, test in cls._contract.items():
        found = getattr(cls, name, None)
        if original(found) is test and (found is test or name in cls.xfail):
            continue
        verb = "removes" if found is None else "redefines"
        broken.append(
            f"{cls.__name__} {verb} {name}, a test of its contract: leave it, or declare the departure: "
            f'xfail = {{"{name}": "why it cannot hold"}}'
        )
    for name, reason in cls.xfail.items():
        if name not in cls._contract:
            broken.append(f"{cls.__name__} expects {name} to fail, but its contract has no such test")
        elif not reason.strip():
            broken.append(f"{cls.__name__} expects {name} to fail without a reason")
    return broken
