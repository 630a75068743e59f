"""WARC files made byte by byte, whole and broken."""

import gzip
import json
import random
import zlib

import brotli
import pytest
from read_whole import pieces_of, problems_of, read_whole

from data_pipeline.config import InputConfig
from data_pipeline.document import record_id
from data_pipeline.read.warc import robots_rules

NOISE = random.Random(9).randbytes(5000)
PAGE = "<html><body><p>Grüße aus dem Archiv</p></body></html>"
PAGE_BYTES = PAGE.encode()


def record(content, kind="response", headers="", length=None, ends="\r\n\r\n"):
    mime = "application/http; msgtype=response" if kind == "response" else "text/plain"
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\nContent-Type: {mime}\r\n{headers}"
    return (
        head.encode()
        + b"Content-Length: %d\r\n\r\n" % (len(content) if length is None else length)
        + content
        + ends.encode()
    )


def response(body=PAGE_BYTES, mime="text/html; charset=utf-8", status="200 OK", extra="", url="http://a/", **options):
    http = f"HTTP/1.1 {status}\r\nContent-Type: {mime}\r\n{extra}\r\n".encode() + body
    return record(http, headers=f"WARC-Target-URI: {url}\r\n", **options)


def page(number):
    noise = random.Random(number).randbytes(200 + 37 * (number % 5)).hex()
    return f"<p>page {number} {noise}</p>"


def crawl(count):
    """A list of records: two pages, then a request."""
    records = [record(b"software: test\r\n", "warcinfo")]
    for number in range(count):
        records.append(response(page(number).encode(), url=f"http://a/{number}"))
        if number % 2:
            records.append(record(b"GET / HTTP/1.1\r\n\r\n", "request"))
    return records


def write(path, records):
    path.write_bytes(b"".join(gzip.compress(each) for each in records) if path.suffix == ".gz" else b"".join(records))
    return path


def texts(table):
    return table["text"].to_pylist()


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_come_with_url_date_type_and_the_byte_they_begin_at(tmp_path, name):
    records = crawl(4)
    path = write(tmp_path / name, records)
    table, statistics = read_whole(path)
    assert texts(table) == [page(number) for number in range(4)]
    assert table["url"].to_pylist() == [f"http://a/{number}" for number in range(4)]
    assert set(table["date"].to_pylist()) == {"2024-05-18T01:58:10Z"}
    assert set(table["content_type"].to_pylist()) == {"text/html"}
    assert statistics.noted == {"read.warc_warcinfo": 1, "read.warc_request": 2}
    assert statistics.dropped == {}
    sizes = [len(gzip.compress(each)) if name.endswith("gz") else len(each) for each in records]
    starts = [sum(sizes[:number]) for number in (1, 2, 4, 5)]
    assert table["row"].to_pylist() == starts
    expected = [record_id("a", str(path), row, f"http://a/{i}", "2024-05-18T01:58:10Z") for i, row in enumerate(starts)]
    assert table["record_id"].to_pylist() == expected


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_any_number_of_workers_reads_every_record_exactly_once(tmp_path, name):
    records = crawl(20)
    inner = b"".join(gzip.compress(each) for each in crawl(3))
    records.insert(5, response(inner, mime="application/gzip"))  # an archive in the archive, stored as it is
    records.insert(9, response(b"\n\n" + b"".join(crawl(3)), mime="text/plain", url="http://plain/"))
    data = [gzip.compress(each, 0 if inner in each else 9) for each in records]
    path = tmp_path / name
    path.write_bytes(b"".join(data if name.endswith("gz") else records))
    damaged = bytearray(path.read_bytes())
    place = sum(map(len, (data if name.endswith("gz") else records)[:14]))
    damaged[place + 30 : place + 60] = bytes(30)
    for content in (path.read_bytes(), bytes(damaged)):
        path.write_bytes(content)
        whole, statistics = read_whole(path)
        assert 18 <= len(whole) <= 21
        cuts = set()
        for size in [1, 50, 300, 333, 700, *range(1000, len(content), 1777)]:
            pieces = pieces_of(InputConfig(paths=[str(path)]), size)
            cuts.add(len(pieces))
            assert [piece.end for piece in pieces[:-1]] == [piece.start for piece in pieces[1:]]
            table, counted = read_whole(path, size)
            assert table.equals(whole)
            assert (counted.dropped, counted.noted) == (statistics.dropped, statistics.noted)
        assert max(cuts) > 15


def test_a_file_without_members_of_its_own_per_record_is_read_too(tmp_path):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(gzip.compress(b"".join(crawl(6))) + gzip.compress(b"".join(crawl(2))))
    table, statistics = read_whole(path)
    assert texts(table) == [page(number) for number in (0, 1, 2, 3, 4, 5, 0, 1)]
    assert len(set(table["row"].to_pylist())) == 8
    assert statistics.dropped == {}


def test_wet_gives_the_text_and_its_first_language(tmp_path):
    header = "WARC-Target-URI: http://b/\r\nWARC-Identified-Content-Language: deu,eng\r\n"
    path = write(tmp_path / "a.warc.wet.gz", [record("Grüße\n三\nमराठी".encode(), "conversion", header)])
    (row,) = read_whole(path)[0].to_pylist()
    assert (row["text"], row["language"], row["url"]) == ("Grüße\n三\nमराठी", "de", "http://b/")
    assert (row["content_type"], row["source"]) == ("text/plain", "a.warc")


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (response(status="404 Not Found"), "http_status_not_200"),
        (response(mime="image/png"), "not_a_text_type"),
        (record(b"no http at all"), "damaged_http_header"),
        (response(b""), "empty_text"),
        (response(b"x" * 3000), "record_too_long"),
        (response(gzip.compress(NOISE, mtime=0)[:-900], extra="Content-Encoding: gzip\r\n"), "damaged_payload"),
        (response(zlib.compress(b"y" * 10**5), extra="Content-Encoding: deflate\r\n"), "payload_too_large"),
        (response(brotli.compress(b"y" * 10**5), extra="Content-Encoding: br\r\n"), "payload_too_large"),
        (response(b"\1\2", extra="Content-Encoding: sdch\r\n"), "unknown_content_encoding"),
        (response(b"5\r\nhello\r\nZZ\r\nbad", extra="Transfer-Encoding: chunked\r\n"), "damaged_payload"),
        (b"what is this\r\n\r\n", "not_a_warc_record"),
        (b"WARC/1.0\r\nWARC-Type: response\r\n\r\nno length\r\n\r\n", "damaged_header"),
        (b"WARC/1.0\r\nX: " + b"y" * 70_000 + b"\r\nContent-Length: 1\r\n\r\nx\r\n\r\n", "damaged_header"),
        (response(length=120), "wrong_length"),
        (response(length=10**15), "wrong_length"),
        (response(length=20_000), "truncated_record"),
    ],
)
def test_a_bad_record_is_counted_with_its_place_and_the_next_one_is_read(tmp_path, built, reason):
    before, after = response(b"<p>before</p>"), response(b"<p>after</p>")
    path = write(tmp_path / "a.warc", [before, built, after])
    limit = 2000 if reason in ("record_too_long", "payload_too_large") else 40_000
    table, statistics = read_whole(path, max_record_bytes=limit)
    assert texts(table) == ["<p>before</p>", "<p>after</p>"]
    assert problems_of(statistics) == {reason: [len(before)]}


def test_a_length_too_large_does_not_swallow_the_next_record(tmp_path):
    first = response(length=500)
    table, statistics = read_whole(
        write(tmp_path / "a.warc", [first, response(b"<p>two</p>"), response(b"<p>three</p>")])
    )
    assert texts(table) == ["<p>two</p>", "<p>three</p>"]
    assert problems_of(statistics) == {"wrong_length": [0]}


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_file_cut_anywhere_keeps_what_is_whole_and_counts_the_rest_once(tmp_path, name):
    records = [response(page(number).encode()) for number in range(3)]
    data = write(tmp_path / name, records).read_bytes()
    sizes = [len(gzip.compress(each)) if name.endswith("gz") else len(each) for each in records]
    for length in range(1, len(data), 7):
        (tmp_path / name).write_bytes(data[:length])
        table, statistics = read_whole(tmp_path / name)
        ends = [sum(sizes[: number + 1]) - (0 if name.endswith("gz") else 4) for number in range(3)]
        whole = sum(end <= length for end in ends)
        assert len(table) == whole, length
        cut_inside = length > sum(sizes[:whole])
        assert sum(tally[0] for tally in statistics.reasons().values()) == cut_inside, length


def test_reading_goes_on_at_the_next_member_behind_broken_gzip(tmp_path):
    generator = random.Random(3)
    records = [response(generator.randbytes(40_000).hex().encode(), mime="text/plain") for _ in range(4)]
    members = [gzip.compress(each) for each in records]
    starts = [sum(map(len, members[:number])) for number in range(4)]
    broken = bytearray(b"".join(members))
    broken[starts[1] + 20_000 : starts[1] + 20_500] = generator.randbytes(500)
    path = tmp_path / "a.warc.gz"
    path.write_bytes(broken)
    table, statistics = read_whole(path)
    assert table["row"].to_pylist() == [starts[0], starts[2], starts[3]]
    assert problems_of(statistics) == {"damaged_gzip": [starts[1]]}
    path.write_bytes(b"".join(members[:2]) + b"rubbish" * 50 + members[2] + members[3][:-1] + b"\xff" + bytes(512))
    table, statistics = read_whole(path)
    assert len(table) == 3
    assert problems_of(statistics) == {"not_a_warc_member": [starts[2]], "damaged_gzip": [starts[3] + 350]}


def test_a_gzip_bomb_is_read_in_bounded_memory(tmp_path):
    resource = pytest.importorskip("resource")
    bomb = response(b"", length=150 * 2**20)[:-4]
    path = tmp_path / "a.warc.gz"
    compress = zlib.compressobj(1, zlib.DEFLATED, 31)
    data = compress.compress(bomb) + b"".join(compress.compress(bytes(2**20)) for _ in range(151)) + compress.flush()
    packed = gzip.compress(gzip.compress(b"z" * 100 * 2**20, 1))
    path.write_bytes(
        data
        + gzip.compress(response(gzip.decompress(packed), extra="Content-Encoding: gzip\r\n"))
        + gzip.compress(response())
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table, statistics = read_whole(path, max_record_bytes=2**20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB
    assert texts(table) == [PAGE]
    assert sorted(problems_of(statistics)) == ["payload_too_large", "wrong_length"]


@pytest.mark.parametrize(
    ("body", "mime", "text"),
    [
        ("Größe".encode("latin-1"), "text/html; charset=ISO-8859-1", "Größe"),
        ("Größe €".encode("cp1252"), "text/html; charset=latin1", "Größe €"),
        ("<meta charset='shift_jis'>日本語".encode("shift_jis"), "text/html", "<meta charset='shift_jis'>日本語"),
        ("Größe".encode(), "text/html; charset=utf-16", "Größe"),
        (b"\xef\xbb\xbf" + "Größe".encode(), "text/html; charset=latin1", "Größe"),
        ("Größe".encode("utf-16"), "text/html", "Größe"),
        ("Größe".encode(), "text/html; charset=zip", "Größe"),
        (b"a\x00b", "text/plain", "a\x00b"),
        ("שלום עולם".encode(), "text/plain", "שלום עולם"),
    ],
)
def test_the_encoding_is_found(tmp_path, body, mime, text):
    assert texts(read_whole(write(tmp_path / "a.warc", [response(body, mime=mime)]))[0]) == [text]


def test_bytes_that_fit_no_encoding_are_replaced_and_noted(tmp_path):
    path = write(tmp_path / "a.warc", [response(b"\xef\xbb\xbfok \xff"), response()])
    table, statistics = read_whole(path)
    assert texts(table) == ["ok \ufffd", PAGE]
    assert statistics.noted == {"read.undecodable_bytes_replaced": 1}


@pytest.mark.parametrize(
    ("extra", "body"),
    [
        ("Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", b"hello world"),
        ("Content-Encoding: gzip\r\n", gzip.compress(b"hello world", mtime=0)),
        ("Content-Encoding: gzip\r\n", b"hello world"),
        ("Content-Encoding: deflate\r\n", zlib.compress(b"hello world")),
        ("Content-Encoding: deflate\r\n", zlib.compress(b"hello world")[2:-4]),
        ("Content-Encoding: br\r\n", brotli.compress(b"hello world")),
        ("Content-Encoding: identity\r\n", b"hello world"),
    ],
)
def test_codings_are_undone_where_they_are_there(tmp_path, extra, body):
    path = write(tmp_path / "a.warc", [response(body, extra=extra)])
    assert texts(read_whole(path)[0]) == ["hello world"]


def test_what_keeps_robots_out_is_kept(tmp_path):
    head = '<META content="noindex, noai" name="Robots"><meta name="tdm-reservation" content=1>'
    built = response(head.encode(), extra="X-Robots-Tag: otherbot: noindex\r\nX-Robots-Tag: max-snippet:5\r\n")
    table, _ = read_whole(write(tmp_path / "a.warc", [built, response()]))
    assert table["opt_out"].to_pylist() == [
        "X-Robots-Tag: otherbot: noindex; meta robots: noindex, noai; meta tdm-reservation: 1",
        None,
    ]
    assert robots_rules('<meta name="robots" content="index, follow, max-image-preview:large">') == []


def test_the_report_shows_file_offset_and_reason(tmp_path):
    path = write(tmp_path / "a.warc", [response(), response(status="503 Busy")])
    _, statistics = read_whole(path)
    (example,) = statistics.examples["read.http_status_not_200"]
    assert (example["file"], example["row"]) == (str(path), len(response()))
    assert "status 503" in example["text"]
    json.dumps(statistics.to_json())
