"""Personal data: what is found, by the plain definition and by hand, and what is done about it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.document import Documents
from data_pipeline.filters import pii
from data_pipeline.filters.personal_data import KIND_NAMES, kinds, match_at
from data_pipeline.filters.pii import PII
from llama_foundation.errors import ConfigError
from tests.data_pipeline.conftest import make_documents


def documents(*texts):
    return make_documents([{"text": text} for text in texts])


def found_in(text, **changes):
    items = pii.find(pa.array(["", text, "8.8.8.8"], pa.large_string()), PII(**changes))
    assert [item.kind for item in items[2]] == ["ipv4"]  # neighbours neither leak in nor get lost
    encoded = text.encode()
    return [(item.kind, encoded[item.start : item.end].decode()) for item in items.get(1, [])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to foo.bar+x@mail.example.com.", [("email", "foo.bar+x@mail.example.com")]),
        ("a@b@c.de and user@host", [("email", "b@c.de")]),
        ("servers 8.8.8.8, 1.1.1.1/24", [("ipv4", "8.8.8.8"), ("ipv4", "1.1.1.1")]),
        ("see 2001:4860:4860::8888: it answers", [("ipv6", "2001:4860:4860::8888")]),
        ("card 4111 1111 1111 1111", [("card", "4111 1111 1111 1111")]),
        ("3782-822463-10005 or 378282246310005", [("card", "3782-822463-10005"), ("card", "378282246310005")]),
        ("DNI 12345678Z, NIE X1234567L", [("es_dni", "12345678Z"), ("es_dni", "X1234567L")]),
        ("Z-0000000-M", [("es_dni", "Z-0000000-M")]),
        ("C.F. RSSMRA85T10A562S", [("it_codice_fiscale", "RSSMRA85T10A562S")]),
        ("GB82 WEST 1234 5698 7654 32 DE8", [("iban", "GB82 WEST 1234 5698 7654 32")]),
        ("DE89370400440532013000", [("iban", "DE89370400440532013000")]),
        ("529.982.247-25; CPF: 52998224725", [("br_cpf", "529.982.247-25"), ("br_cpf", "52998224725")]),
        ("BSN 111222333", [("nl_bsn", "111222333")]),
        ("身份证号11010519491231002X。", [("cn_resident_id", "11010519491231002X")]),
        ("SSN 123-45-6789", [("us_ssn", "123-45-6789")]),
        ("+1 (415) 555-1234, 212-555-0123", [("phone", "+1 (415) 555-1234"), ("phone", "212-555-0123")]),
        ("+44 20 7946 0958 / 01 23 45 67 89", [("phone", "+44 20 7946 0958"), ("phone", "01 23 45 67 89")]),
        ("电话13800138000", [("phone", "13800138000")]),
        ("tel: 668 57 02", [("phone", "668 57 02")]),
    ],
)  # fmt: skip
def test_what_its_authorities_publish_as_an_example_is_found(text, expected):
    assert found_in(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "icon@2x.png and user@localhost, @handle, a @ b.com",
        "192.168.1.1, 127.0.0.1, 256.1.1.1, v1.2.3.4, 1.2.3.4.5, 01.2.3.4",
        "::1 fe80::1 12:30:45 std::face a::b 2023:10:12",
        "4111 1111 1111 1112, 4111-1111 1111-1111, 0000 0000 0000 0000",
        "12345678A X1234567M 123456789Z",
        "RSSMRA85T10A562T",
        "GB82 WEST 1234 5698 7654 33, DE8937040044053201300",
        "529.982.247-26, 52998224725, 111.111.111-11",
        "111222333, BSN 111222334",
        "110105194912310021, 110105194913310021",
        "000-45-6789, 666-12-1234, 900-12-1234, 123-00-6789, 123-45-0000, 1123-45-6789",
        "2023-10-12 10:20:30, 1,234,567.89, 3.14159265, 02134-1307, 1234567890, 668 57 02, 1 2 3 4 5 6 7 8",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text):
    assert found_in(text) == []


def test_addresses_of_no_public_host_are_found_when_asked_for():
    text = "192.168.1.1 fe80::1 10.0.0.1 0.0.0.0"
    assert [value for _, value in found_in(text, public_addresses_only=False)] == ["192.168.1.1", "fe80::1", "10.0.0.1"]


EXAMPLES = st.sampled_from(
    [
        "a.b@c.de",
        "x@y.z.com",
        "8.8.8.8",
        "192.168.0.1",
        "2001:4860:4860::8888",
        "fe80::1:2",
        "4111111111111111",
        "4111-1111-1111-1111",
        "12345678Z",
        "X-1234567-L",
        "RSSMRA85T10A562S",
        "GB82WEST12345698765432",
        "529.982.247-25",
        "11010519491231002X",
        "123-45-6789",
        "(415)555-1234",
        "+442079460958",
        "01.23.45.67.89",
        "+1",
        "phone",
        "tel",
        "BSN",
        "111222333",
        "CPF",
        "52998224725",
        "0041",
        "(0)20",
        "7946",
    ]
)
NOISE = st.text("0123456789 .-/:()+@_aAfXzé中\u00a0\u2013\n", max_size=12)
GAPS = st.sampled_from(["", " ", "-", ".", "/", "\u00a0", "\u2013", " (", ") ", ")\u00a0", "\u2013(", "+", ":"])
NUMBERS = st.lists(
    st.tuples(st.sampled_from(["0", "1", "20", "41", "415", "555", "0123", "7946", "3456", "12345"]), GAPS),
    min_size=2,
    max_size=6,
)
PARTS = st.one_of(EXAMPLES, NOISE, GAPS, NUMBERS.map(lambda groups: "".join(map("".join, groups))))


@settings(max_examples=400, deadline=None)
@example(["8.8.8.8", "+442079460958", "a.b@c.de"], False)
@given(st.lists(PARTS, max_size=10), st.booleans())
def test_the_kernel_finds_exactly_what_trying_every_position_finds(parts, public):
    text = "".join(parts).encode()
    table = kinds(public)
    expected = []
    place = 0
    while place < len(text):
        match = match_at(text, place, 255, table)
        if match:
            expected.append((match[0], place, match[1]))
        place = match[1] if match else place + 1
    found = pii.find(pa.array([text.decode()], pa.large_string()), PII(public_addresses_only=public))
    assert [(item.kind, item.start, item.end) for item in found.get(0, [])] == expected


def test_items_are_masked_by_kind_and_counted_and_other_bytes_stay():
    texts = ["é a@b.de 中", "nothing", "8.8.8.8", "", "+442079460958 x@y.com"]
    measured = pii.measure(documents(*texts), PII(placeholders={"email": "", "ipv4": "<网>"}))
    assert measured.texts.to_pylist() == ["é  中", "nothing", "<网>", "", "[PHONE] "]
    assert measured.texts.type == pa.large_string()
    assert measured.counts == {"email": 2, "ipv4": 1, "phone": 1}
    assert measured.scores["items"].tolist() == [1, 0, 1, 0, 2]


def test_masking_again_changes_nothing():
    text = " ".join(["a@b.de 8.8.8.8 4111111111111111 +442079460958 11010519491231002X 123-45-6789"] * 3)
    once = pii.measure(documents(text), PII()).texts
    assert "[EMAIL] [IPV4] [CARD] [PHONE] [CN_RESIDENT_ID] [US_SSN]" in once[0].as_py()
    assert pii.measure(documents(once[0].as_py()), PII()).texts is None


def test_masks_fit_a_slice_of_a_batch():
    batch = documents("aa", "x 8.8.8.8", "y").batch.slice(1, 2)
    assert pii.measure(Documents(batch), PII()).texts.to_pylist() == ["x [IPV4]", "y"]


def test_limits_are_rules_over_counts():
    chosen = PII(max_items=2, max_per_kind={"email": 0}, mask=False)
    measured = pii.measure(documents("a@b.de", "8.8.8.8 1.1.1.1 9.9.9.9", "8.8.8.8"), chosen)
    dropped = {rule.reason: (measured.scores[rule.score] > rule.maximum).tolist() for rule in pii.rules(chosen)}
    assert dropped == {"too_many_email": [True, False, False], "too_many": [False, True, False]}
    assert measured.texts is None
    assert all(scores.dtype == np.float64 for scores in measured.scores.values())


def test_only_the_chosen_kinds_are_touched():
    assert found_in("a@b.de", kinds=["ipv4"]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ["mail"]}, "pii.kinds names 'mail'; it must be one of email, ipv4"),
        ({"kinds": ["email"], "placeholders": {"phone": "x"}}, "pii.placeholders names 'phone'"),
        ({"max_per_kind": {"email": -1}}, "pii.max_per_kind.email=-1"),
        ({"max_items": -1}, "pii.max_items=-1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        PII(**changes).check()
    assert message in str(error.value)
    PII(kinds=list(KIND_NAMES)).check()
