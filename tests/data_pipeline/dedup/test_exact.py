from data_pipeline.dedup.exact import text_key


def test_texts_that_differ_only_in_white_space_or_composition_are_the_same():
    assert text_key("caf\u00e9  au\n\tlait ") == text_key("cafe\u0301 au lait")
    assert text_key("Cafe au lait") != text_key("cafe au lait")
