"""The list of mutations fits the code, and the judgement of one."""

import pytest

from tests import ROOT
from tests.mutation.__main__ import mutated, survives
from tests.mutation.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.title[:60])
def test_every_mutation_fits_the_code_and_names_tests(mutation):
    assert mutated((ROOT / mutation.path).read_text(), mutation)
    assert mutation.old != mutation.new
    assert all((ROOT / test).exists() for test in mutation.tests)


def test_there_are_many_mutations_and_none_twice():
    assert len({(m.path, m.old) for m in MUTATIONS}) == len(MUTATIONS) >= 45


@pytest.mark.parametrize(
    ("new", "reason"),
    [("return 2", ""), ("return 1  # as before", "no test fails"), ("return (", "pytest ended with 2")],
)
def test_a_mutation_survives_unless_a_test_fails(tmp_path, new, reason):
    (tmp_path / "sound.py").write_text("def one():\n    return 1\n")
    (tmp_path / "test_sound.py").write_text("from sound import one\n\ndef test_one():\n    assert one() == 1\n")
    found = survives(tmp_path, Mutation("sound.py", "return 1", new, ("test_sound.py",)))
    assert found.startswith(reason) if reason else found == ""
    assert (tmp_path / "sound.py").read_text() == "def one():\n    return 1\n"


def test_a_piece_that_is_not_there_or_there_twice_is_an_error():
    for text in ("", "a a"):
        with pytest.raises(ValueError, match="expected the piece once"):
            mutated(text, Mutation("x.py", "a", "b", ("t",)))
