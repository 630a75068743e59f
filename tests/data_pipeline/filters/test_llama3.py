import pytest

from data_pipeline.filters import llama3
from data_pipeline.filters.llama3 import Llama3
from data_pipeline.filters.word_lists import check_lists
from llama_foundation.errors import ConfigError
from tests.data_pipeline.filters.judging import judge

LOG = "error at line one of file " * 6  # 6 words, six times
PROSE = "this line tells something new with every one of its words"


def test_a_line_that_repeats_itself_goes_and_the_others_stay():
    verdict = judge(llama3, Llama3(), f"{PROSE}\n{LOG}\n\n{PROSE}")
    assert verdict.text == f"{PROSE}\n{PROSE}"  # repetition between lines is no matter of this rule
    assert verdict.counts == {"repetitive_line": 1}
    assert judge(llama3, Llama3(), LOG).reason == "no_lines_left"


def test_coverage_is_counted_within_the_line():
    # "a b c d e" twice and five others: 5 of 15 characters
    line = "a b c d e f g h i j a b c d e"
    assert judge(llama3, Llama3(max_line_coverage=0.34), line).text is None
    assert judge(llama3, Llama3(max_line_coverage=0.33), line).text == ""


def test_dirty_words_are_counted_per_word_in_languages_with_a_list(tmp_path):
    listed = tmp_path / "en.txt"
    listed.write_text("Filth\nvery bad\n")
    settings = Llama3(dirty_word_lists={"en": str(listed)}, max_dirty_words=0.2)
    verdict = judge(llama3, settings, "filth, FILTH and very bad or filthy words")  # 3 of 8
    assert (verdict.reason, verdict.scores["dirty_words"]) == ("dirty_words", pytest.approx(3 / 8))
    assert "dirty_words" in judge(llama3, settings, "filth", "de").abstained
    assert "dirty_words" in judge(llama3, Llama3(), "filth").abstained


def test_a_list_that_cannot_be_used_is_refused_by_name(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n\n")
    for path, problem in ((empty, "holds no words"), (tmp_path / "none.txt", "cannot be read")):
        with pytest.raises(ConfigError, match=rf"pipeline\.llama3\.dirty_word_lists\.en=.*{problem}"):
            check_lists("pipeline.llama3.dirty_word_lists", {"en": str(path)})
