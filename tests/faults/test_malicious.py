"""What somebody may have made to reach other files, memory or code is refused by every loader, by name.

Other tests hold the rest: links, paths and sizes in checkpoints, manifests and shards (`test_restore.py`,
`test_index.py`, `test_writer_reader.py`), pickles of code (`test_pth.py`, `test_deepspeed_files.py`,
`test_huggingface.py`), archives that unpack to anything (`test_jsonl.py`, `test_warc.py`).
"""

import json
import shutil
import struct
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.config import InputConfig
from data_pipeline.engines.work import load_commit
from data_pipeline.read import plan
from data_pipeline.shards.manifest import MANIFEST, publish_sealed, read_sealed
from data_pipeline.shards.pack_writer import write_packs
from data_pipeline.shards.packs import PackSet
from data_pipeline.shards.reader import ShardSet, open_root
from data_pipeline.tokenize import load_tokenizer
from data_pipeline.verify import work_problems
from llama_foundation.errors import CheckpointError, DataError
from llama_train.checkpoint.load import open_weights
from llama_train.checkpoint.pth import PickledTensors
from llama_train.prove.harness import make_shards
from tests.data_pipeline.read.read_whole import problems_of, read_whole
from tests.faults.test_fuzz_corpus import INPUTS, LENGTH, sealed_again, some_work
from tests.faults.test_injected import train_here
from tests.llama_train.checkpoint import test_deepspeed_files as deepspeed

PICKLE = b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", 101, 2_000)
    directory = next((tmp_path / "shards" / "train").rglob(MANIFEST)).parent
    write_packs(ShardSet(directory), LENGTH)
    return directory


def test_packs_elsewhere_of_any_size_or_a_pickle(source: Path, tmp_path: Path) -> None:
    packs = source / f"packs-{LENGTH}"
    file, content = packs / "shard-00000.packs", (packs / "shard-00000.packs").read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            PackSet(ShardSet(source), LENGTH).check()

    sealed_again(packs / MANIFEST, file.name, content[:24] + struct.pack("<Q", 2**62) + content[32:])
    refused("but its manifest says")
    ends = struct.unpack_from("<Q", content, 24)[0]
    far = 40 + 8 * ends  # the first piece's token offset; with its length it overflows int64
    sealed_again(packs / MANIFEST, file.name, content[:far] + struct.pack("<q", 2**63 - 1) + content[far + 8 :])
    refused("lies outside its shard")
    sealed_again(packs / MANIFEST, file.name, PICKLE + bytes(40))
    refused("it is not a pack index")
    sealed_again(packs / MANIFEST, file.name, content)
    PackSet(ShardSet(source), LENGTH).check()
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    refused("leads out of")
    file.unlink()
    shutil.move(packs, tmp_path / "packs")
    packs.symlink_to(tmp_path / "packs")
    refused("leads out of")


def test_a_tokenizer_elsewhere_or_a_pickle(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    value = read_sealed(root / "shards.json")
    (tmp_path / "secret").write_text("x")
    for path in ("../secret", str(tmp_path / "secret")):
        value["tokenizer"]["file"] = path
        publish_sealed(root / "shards.json", value)
        with pytest.raises(DataError, match="leads out of"):
            open_root(root)
    (root / "link").symlink_to(tmp_path / "secret")
    value["tokenizer"]["file"] = "link"
    publish_sealed(root / "shards.json", value)
    with pytest.raises(DataError, match="leads out of"):
        open_root(root)
    (tmp_path / "tokenizer.model").write_bytes(PICKLE)
    with pytest.raises(DataError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_a_provenance_file_that_leads_elsewhere_or_is_no_text(source: Path, tmp_path: Path) -> None:
    file = next(source.glob("*.provenance.parquet"))
    rows = pq.read_table(file)
    words = pa.array([b"\xa5"] * len(rows)).view(pa.string())
    pq.write_table(rows.set_column(rows.schema.get_field_index("first_words"), "first_words", words), tmp_path / "x")
    whole = file.read_bytes()
    sealed_again(source / MANIFEST, file.name, (tmp_path / "x").read_bytes())
    with pytest.raises(DataError, match="Invalid UTF8"):
        ShardSet(source).provenance(0, 0)
    sealed_again(source / MANIFEST, file.name, whole)
    assert ShardSet(source).provenance(0, 0)["source"]
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of"):
        ShardSet(source).provenance(0, 0)


@pytest.mark.parametrize(
    "change", [{"path": "../../secret"}, {"path": "/etc/passwd"}, {"length": 2**40}, {"offset": -1}, {"path": "link"}]
)
def test_work_that_points_elsewhere_is_done_again(tmp_path: Path, change: dict) -> None:
    folder = tmp_path / "work" / "read-0"
    task = some_work(folder)
    (tmp_path / "secret").write_bytes(b"x" * 10_000)
    (folder / "link").symlink_to(tmp_path / "secret")
    assert load_commit(folder, task) is not None and work_problems(folder.parent) == []
    path = folder / "000000.json"
    value = json.loads(path.read_text())
    value["blocks"][0] |= change
    path.write_text(json.dumps(value))
    assert load_commit(folder, task) is None
    assert len(work_problems(folder.parent)) == 1
    path.write_bytes(PICKLE)
    assert load_commit(folder, task) is None


def test_a_saved_data_set_that_names_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for place in (folder / "data.arrow", tmp_path / "secret.arrow"):
        place.write_bytes(INPUTS["a.arrow"])

    def found(name: str) -> list:
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        return plan.find(InputConfig(paths=[str(folder)]))

    assert len(found("data.arrow")) == 1
    for name in ("../secret.arrow", str(tmp_path / "secret.arrow"), "../set/data.arrow"):
        with pytest.raises(DataError, match="no Arrow file beside it"):
            found(name)


def test_an_arrow_file_whose_values_lie_outside_of_it(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["hello", "world"])], ["text"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = (tmp_path / "a.arrow").read_bytes()
    assert content.count(struct.pack("<3i", 0, 5, 10)) == 1  # where the texts begin and end
    assert len(read_whole(tmp_path / "a.arrow")[0]) == 2
    (tmp_path / "a.arrow").write_bytes(content.replace(struct.pack("<3i", 0, 5, 10), struct.pack("<3i", 0, 5, 2**30)))
    table, statistics = read_whole(tmp_path / "a.arrow")
    assert len(table) == 0 and problems_of(statistics) == {"damaged_file": [0]}


def test_an_archive_of_tensors_that_says_two_things(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"

    def written(**more: bytes) -> Path:
        torch.save({"x": torch.ones(4)}, path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, content in more.items():
                archive.writestr(name.replace("_", "/", 1), content)
        return path

    assert list(PickledTensors(written()).tensors) == ["x"]
    with pytest.raises(CheckpointError, match="an entry twice"):
        PickledTensors(written(**{"x_DATA.PKL": PICKLE}))
    with pytest.raises(CheckpointError, match="is compressed"):
        PickledTensors(written(x_bomb=bytes(1_000_000)))


def test_deepspeeds_pointer_leads_nowhere_else(tmp_path: Path) -> None:
    deepspeed.write(tmp_path / "other", 2)
    deepspeed.write(tmp_path / "mine", 2)
    open_weights(tmp_path / "mine")
    for name in ("../other/global_step7", str(tmp_path / "other" / "global_step7"), "..", "x" * 5000):
        (tmp_path / "mine" / "latest").write_text(name)
        with pytest.raises(CheckpointError, match="no checkpoint beside it"):
            open_weights(tmp_path / "mine")


def test_the_fast_tier_stays_where_it_was_put(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "id").write_text("/../../elsewhere")
    overrides = [*tiny, "steps=2", f"checkpoint.fast={tmp_path / 'fast'}", "checkpoint.fast_every=1"]
    assert train_here(overrides) == 2
    assert "is no id of a run" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "fast").exists()
