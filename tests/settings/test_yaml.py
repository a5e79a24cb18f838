"""YAML reading: YAML 1.2 words, every refusal with its line, and a dump that reads back equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scantling.errors import ConfigError
from scantling.settings.yaml import MAX_DEPTH, dump, parse, scalar


def value_of(text: str):
    return parse(text, file="r.yaml").value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("12", 12),
        ("-7", -7),
        ("0123", 123),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("no", "no"),
        ("2024-05-01", "2024-05-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("$(rm -rf x)", "$(rm -rf x)"),
    ],
)
def test_unquoted_words(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quotes_make_text():
    assert value_of("a: '1e-4'\nb: \"true\"\nc: ! 12") == {"a": "1e-4", "b": "true", "c": "12"}


def test_lines_of_keys_and_items():
    document = parse("a:\n  b: 1\n\n  c:\n  - x\n  - y\n", file="r.yaml")
    assert document.lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 4, ("a", "c", 0): 5, ("a", "c", 1): 6}


def test_aliases_repeat_a_section():
    assert value_of("a: &t {lr: 1}\nb: *t\n") == {"a": {"lr": 1}, "b": {"lr": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml: line 3: key 'a' is given twice (first in line 1)"),
        ("x: !!python/object/apply:os.system [ls]", "line 1: tag 'tag:yaml.org,2002:python/object/apply"),
        ("x: !own 1", "line 1: tag '!own'"),
        ("a:\n\tb: 1", "line 2, column 1: not valid YAML"),
        ("a: [1", "line 1, column 6: not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("a: *b", "alias *b has no anchor &b"),
        ("a: &a [*a]", "alias *a has no anchor"),
        ("1: 2", "line 1: key '1' is not text; write it in quotes"),
        ("true: 2", "key 'true' is not text"),
        ("? [a]\n: 1", "a key must be one word"),
        ("a: x\x00y", "line 1: not text"),
        ("a: 1\nb: \x07", "line 2: not text"),
        ("[" * 20_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("- " * 20_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("x" * 1_000_001, "longer than 1,000,000 characters"),
    ],
)
def test_refusals_name_the_place(text, message):
    with pytest.raises(ConfigError) as caught:
        value_of(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("r.yaml: ")


def test_an_alias_bomb_is_refused_before_it_grows():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match="more than 20,000 values"):
        value_of("\n".join(lines))


def test_an_empty_text_has_no_value():
    assert value_of("") is None
    assert value_of("# only a comment\n") is None


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
    | st.sampled_from(
        ["1e-4", "1e5", "yes", "null", "~", "2024-05-01", "0o7", ".5", "- a", "a: b", "#", "&x", "*x"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc é-_1e", min_size=1, max_size=5), inner)
    ),
    max_leaves=12,
)


@given(plain)
def test_what_is_dumped_reads_back_equal(value):
    again = parse(dump({"value": value}), file="dump").value["value"]
    assert again == value
    assert repr(again) == repr(value)
