"""Tables as people and spreadsheets write them: what cannot be read rightly names its line."""

import pytest

from minids3.grade.tables import plain, read_table, safe, spellings


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    place = tmp_path / "t.csv"
    place.write_text('\nsep=;\na;b\n1;"two\nlines"\n\n3;4;\n5;6;7\n')
    with pytest.raises(ValueError, match="line 8: has 3 cells, and the header 2"):
        read_table(place)
    place.write_text('\nsep=;\na;b\n1;"two\nlines"\n\n3;4;\n')
    assert [line for line, _ in read_table(place).rows] == [4, 7]
    with pytest.raises(ValueError, match="line 7"):
        read_table(place, by_hand=True)


@pytest.mark.parametrize("text", ['a,b\n1,"two\n3,4\n', 'a,b\n1,"two" three\n'])
def test_quotation_marks_that_do_not_close_swallow_nothing(tmp_path, text):
    place = tmp_path / "t.csv"
    place.write_text(text)
    with pytest.raises(ValueError, match=r'line 2: .*a " in a text is written twice'):
        read_table(place)


def test_numbers_and_names_as_they_are_compared():
    same = ("4802", "4802.0", "04802", " 4802,00 ")
    assert {plain(n) for n in same} == {"4802"}
    assert [plain(n) for n in ("000", "JDoe", "48.5")] == ["0", "jdoe", "48.5"]
    assert spellings("Lovelace, Ada") == {"lovelaceada", "adalovelace"}
    assert spellings("?") == set()


def test_a_dash_alone_is_no_formula():
    assert [safe(t) for t in ("-", " - ", "-1", "a;-1")] == ["-", " - ", "'-1", "a;'-1"]
