"""Error codes, and messages that list several faults."""

from __future__ import annotations

import pytest

from promise.runtime.errors import (
    SHOWN,
    ExistingRunError,
    MissingFileError,
    UserError,
    all_of,
    list_faults,
    raise_all,
    shorten,
    unknown_name,
)


def fail(code: str) -> None:
    raise UserError(f"message of {code}", code=code)


def test_several_errors_are_raised_as_one_with_all_codes() -> None:
    with pytest.raises(UserError) as caught:
        all_of(lambda: fail("a"), lambda: 1, lambda: all_of(lambda: fail("b"), lambda: fail("c")))
    assert caught.value.code == "several"
    assert caught.value.codes == ("a", "b", "c")
    assert all(f"message of {code}" in str(caught.value) for code in "abc")
    assert all_of(lambda: 1, lambda: 2) == [1, 2]


def test_a_single_error_is_raised_unchanged() -> None:
    error = MissingFileError("x", code="missing-x")
    with pytest.raises(MissingFileError) as caught:
        raise_all([error])
    assert caught.value is error
    assert error.codes == ("missing-x",)
    raise_all([])


def test_errors_are_also_built_in_exceptions() -> None:
    assert isinstance(MissingFileError("x"), FileNotFoundError)
    assert isinstance(ExistingRunError("x"), FileExistsError)
    assert (str(MissingFileError("x")), str(ExistingRunError("y"))) == ("x", "y")


def test_unknown_name_lists_known_names_and_the_closest() -> None:
    error = unknown_name("data set", "Kvasr", ("kvasir", "etis"))
    assert error.code == "unknown-data-set"
    assert "Did you mean 'kvasir'?" in str(error)
    assert "kvasir, etis" in str(error)


def test_long_lists_are_shortened() -> None:
    lines = [f"  {i}" for i in range(SHOWN + 3)]
    assert shorten(lines) == [*lines[:SHOWN], "  … and 3 more"]
    assert shorten(lines[:SHOWN]) == lines[:SHOWN]
    assert list_faults("head", [(7, "b"), (2, "a")]) == "head\n  line 2: a\n  line 7: b"
