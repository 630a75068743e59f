"""The linear model: against scikit-learn's idea of the same thing, and to the byte."""

import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.filters import linear
from data_pipeline.filters.linear import Features, LinearModel, Training, load_model, save_model, train
from data_pipeline.filters.word_hashes import gram_hash
from llama_foundation.errors import DataError

SMALL = Features(ngrams=2, bits=12)


def texts(values):
    return pa.array(values, pa.large_string())


def corpus(count=200):
    generator = np.random.default_rng(0)
    good, bad, both = ["alpha", "beta", "gamma"], ["delta", "epsilon", "zeta"], [f"w{n}" for n in range(50)]
    values = [
        " ".join([*generator.choice(good if n % 2 else bad, 2), *generator.choice(both, 8)]) for n in range(count)
    ]
    return texts(values), np.arange(count) % 2 == 1


def bucket(text, bits):
    return (gram_hash(text)[1] * 0xD6E8FEB86659FD93 % 2**64) >> (64 - bits)


@settings(deadline=None)  # the first call compiles
@given(st.floats(-700, 700))
def test_our_exponential_is_the_exponential(x):
    assert linear.exponential(x) == pytest.approx(np.exp(x), rel=1e-13)


def test_a_score_is_the_logistic_function_of_the_mean_of_different_n_grams():
    weights = np.random.default_rng(1).normal(size=1 << 12).astype(np.float32)
    model = LinearModel(SMALL, weights, 0.25, np.zeros(linear.QUANTILES))
    grams = ["red", "red fish", "fish", "fish red", "fish blue", "blue"]  # of "red fish red, FISH blue", each once
    z = 0.25 + sum(float(weights[bucket(gram, 12)]) for gram in grams) / np.sqrt(len(grams))
    [score, nothing] = model.scores(texts(["red fish red, FISH blue", "... !"]))
    assert score == pytest.approx(1 / (1 + np.exp(-z)), rel=1e-12)
    assert np.isnan(nothing)


def test_one_step_of_training_is_adagrad_by_hand():
    model = train(texts(["good", "bad"]), np.array([True, False]), SMALL, Training(epochs=1, weight_decay=0.0))
    first = {True: "good", False: "bad"}
    order = np.argsort(np.random.Generator(np.random.Philox(0)).random(2), kind="stable").tolist()
    weight, bias, gathered = {"good": 0.0, "bad": 0.0}, 0.0, 0.0
    for label in [(True, False)[index] for index in order]:
        word = first[label]
        error = 1 / (1 + np.exp(-(bias + weight[word]))) - label
        weight[word] -= 0.5 * error / np.sqrt(1e-6 + error**2)
        gathered += error**2
        bias -= 0.5 * error / np.sqrt(gathered + 1e-6)
    assert model.bias == pytest.approx(bias, rel=1e-12)
    for word in weight:
        assert model.weights[bucket(word, 12)] == pytest.approx(weight[word], rel=1e-6)


def test_it_learns_which_words_tell_and_classes_weigh_the_same():
    values, positive = corpus()
    few = positive | (np.arange(len(positive)) % 10 == 0)  # 5 positive texts to 1 negative
    model = train(values.filter(pa.array(few)), positive[few], SMALL, Training())
    scores = model.scores(values.filter(pa.array(~few)))
    assert (scores < 0.5).mean() > 0.85  # all that is left is negative
    assert model.scores(texts(["alpha beta"]))[0] > 0.9


def test_the_same_texts_give_the_same_bytes():
    values, positive = corpus()
    one, other = (save_model(train(values, positive, SMALL, Training()), {"b": 1, "a": 2}) for _ in range(2))
    assert one == other
    assert one != save_model(train(values, positive, SMALL, Training(seed=1)), {"b": 1, "a": 2})


def test_what_was_saved_is_what_is_loaded(tmp_path):
    values, positive = corpus()
    model = train(values, positive, SMALL, Training())
    (tmp_path / "m.safetensors").write_bytes(save_model(model, {}))
    loaded = load_model(str(tmp_path / "m.safetensors"))
    assert loaded.features == SMALL
    assert np.array_equal(loaded.scores(values), model.scores(values))


def rewritten(content, change):
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["llama_train"])
    change(about)
    header["__metadata__"]["llama_train"] = json.dumps(about)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + size :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-10], "is not a model made by llama-quality"),
        (lambda content: b"hello", "is not a model made by llama-quality"),
        (lambda content: b"", "is not a model made by llama-quality"),
        (lambda content: rewritten(content, lambda about: about.update(format="x")), "its format is 'x'"),
        (lambda content: rewritten(content, lambda about: about["features"].update(bits=11)), "does not fit"),
        (lambda content: rewritten(content, lambda about: about["features"].update(ngrams=99)), "does not fit"),
        (lambda content: rewritten(content, lambda about: about.pop("features")), "is not a model made by"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, damage, message):
    model = LinearModel(SMALL, np.zeros(1 << 12, np.float32), 0.0, np.zeros(linear.QUANTILES))
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage(save_model(model, {})))
    with pytest.raises(DataError) as error:
        load_model(str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_model_that_does_not_exist_is_refused_by_name():
    with pytest.raises(DataError, match=r"none\.safetensors: the model cannot be read: No such file"):
        load_model("none.safetensors")
