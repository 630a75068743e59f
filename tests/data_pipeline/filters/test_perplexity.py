"""Perplexity buckets: with a stand-in for kenlm, which has no wheel, and with kenlm itself where it is installed."""

import sys
import types

import numpy as np
import pytest

from data_pipeline.filters import perplexity
from data_pipeline.filters.perplexity import Bucket, LanguageModel, Perplexity
from llama_foundation.errors import ConfigError, DataError, UserError
from tests.data_pipeline.conftest import make_documents


@pytest.fixture(autouse=True)
def fresh():
    perplexity._load.cache_clear()


@pytest.fixture
def model(monkeypatch, tmp_path):
    """Every word of L letters has probability 10**-L, and so has the end of a line with L = 1."""

    class Model:
        def __init__(self, path):
            if "damaged" in path:
                raise OSError("Cannot read model")

        def score(self, sentence, bos=True, eos=True):
            return -float(sum(map(len, sentence.split(" "))) + (1 if eos else 0))

    monkeypatch.setitem(sys.modules, "kenlm", types.SimpleNamespace(Model=Model))
    (tmp_path / "en.bin").write_bytes(b"model")
    return str(tmp_path / "en.bin")


def documents(texts, languages):
    return make_documents([{"text": text, "language": code} for text, code in zip(texts, languages, strict=True)])


def test_buckets_are_cut_by_perplexity_per_token_and_line_ends_count(model):
    settings = Perplexity({"en": LanguageModel(model, head=10**1.5, middle=10**2.0)}, keep_through=Bucket.middle)
    settings.check()
    texts = ["a bb\nbb a", "aaa bb\n\n a ", "aaaa", "a" * 5000, "a", "a", " \n"]
    measured = perplexity.measure(documents(texts, ["en", "en-US", "en", "en", "de", None, "en"]), settings)
    # (1+2+1)*2 letters and ends over 6 tokens; (3+2+1) + (1+1) over 5; (4+1) over 2; cut off; three abstain
    assert measured.scores["en"][:3] == pytest.approx([10 ** (8 / 6), 10 ** (8 / 5), 10**2.5])
    assert measured.scores["en"][3] == perplexity.LARGEST
    assert np.isnan(measured.scores["en"][4:]).all()
    assert measured.columns["perplexity_bucket"].to_pylist() == ["head", "middle", "tail", "tail", None, None, None]
    [rule] = perplexity.rules(settings)
    assert (rule.reason, rule.score, rule.maximum) == ("high_en", "en", 100)


ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-0.7\t</s>
-0.5\ta\t-0.2
-0.9\tbb\t-0.1

\\2-grams:
-0.4\t<s> a
-0.6\ta bb
-0.3\tbb </s>

\\end\\
"""


def test_kenlm_itself_gives_the_perplexity_of_a_model_written_by_hand(tmp_path):
    pytest.importorskip("kenlm", reason="kenlm is built from source: pip install kenlm")
    (tmp_path / "en.arpa").write_text(ARPA)
    settings = Perplexity({"en": LanguageModel(str(tmp_path / "en.arpa"), head=10**0.5, middle=10**0.9)})
    measured = perplexity.measure(documents(["A bb", "bb a\n\n a bb", "zz"], ["en"] * 3), settings)
    # <s> a, a bb, bb </s>; backing off from <s> to bb, from bb to a, from a to </s>; from <s> to <unk>, then </s>
    known, backed_off, unknown = 0.4 + 0.6 + 0.3, 0.3 + 0.9 + 0.1 + 0.5 + 0.2 + 0.7, 0.3 + 1.0 + 0.7
    exponents = [known / 3, (backed_off + known) / 6, unknown / 2]
    assert measured.scores["en"] == pytest.approx([10**each for each in exponents], rel=1e-5)
    assert measured.columns["perplexity_bucket"].to_pylist() == ["head", "middle", "tail"]
    (tmp_path / "damaged.arpa").write_text(ARPA[:60])
    settings = Perplexity({"en": LanguageModel(str(tmp_path / "damaged.arpa"), head=1.0, middle=2.0)})
    with pytest.raises(DataError, match="kenlm cannot read it"):
        perplexity.measure(documents(["x"], ["en"]), settings)


def test_lines_are_normalized_as_ccnet_did():
    assert perplexity.normalized("Él tenía 42 AÑOS") == "el tenia 00 anos"


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    settings = Perplexity({"en": LanguageModel("m.bin", head=1.0, middle=2.0)})
    with pytest.raises(UserError, match=r"C\+\+ compiler and CMake installed run pip install .llama-train.kenlm"):
        perplexity.measure(documents(["x"], ["en"]), settings)


def test_a_model_that_is_missing_or_damaged_is_named(model, tmp_path):
    (tmp_path / "damaged.bin").write_bytes(b"x")
    for name, message in (("none.bin", "none.bin does not exist"), ("damaged.bin", "kenlm cannot read it")):
        settings = Perplexity({"en": LanguageModel(str(tmp_path / name), head=1.0, middle=2.0)})
        with pytest.raises(DataError, match=message):
            perplexity.measure(documents(["x"], ["en"]), settings)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "names no model"),
        ({"en": LanguageModel()}, "perplexity.models.en.model is not set"),
        ({"en": LanguageModel("m", head=3.0, middle=2.0)}, "head at most middle"),
    ],
)
def test_settings_that_mean_nothing_are_refused(models, message):
    with pytest.raises(ConfigError) as error:
        Perplexity(models).check()
    assert message in str(error.value)
