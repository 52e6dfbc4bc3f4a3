"""Images inside tar and Parquet files, whatever these are called and hold."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ot_core import Cause, ImageError, UserError, listing, shards, storage
from ot_core.names import Ignored
from ot_core.results import ManifestRow


def tar_of(*names: str, data: bytes = b"x" * 700) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet_of(columns: dict[str, pa.Array], row_group_size: int = 2) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def read(path: Path) -> dict[str, bytes]:
    """Key and content of each image of a shard."""
    images = list(listing.list_images(str(path)))
    assert not [image.problem for image in images if image.problem]
    return {image.key: shards.read_member(image.uri, image.member) for image in images}


class TestTar:
    @pytest.mark.parametrize("padding", [0, 512, 10240, 3 << 20])
    def test_files_one_after_the_other_are_one(self, tmp_path: Path, padding: int):
        path = tmp_path / "all.tar"
        three = tar_of("a.png", data=b"1"), tar_of("b.png", data=b"2" * 513), tar_of("c.png", data=b"3" * 9000)
        path.write_bytes((b"\0" * padding).join(three))
        assert read(path) == {"all/a": b"1", "all/b": b"2" * 513, "all/c": b"3" * 9000}
        members = list(shards.read_shard(str(path)))
        assert members == [("a.png", b"1"), ("b.png", b"2" * 513), ("c.png", b"3" * 9000)]

    @pytest.mark.parametrize("mark", [0, 1])
    def test_one_mark_of_an_end_is_enough_and_none_is_a_problem(self, tmp_path: Path, mark: int):
        path = tmp_path / "a.tar"
        end = 2 * (512 + 1024)
        path.write_bytes(tar_of("a.png", "b.png")[: end + 512 * mark])
        found = list(listing.list_images(str(path)))
        assert [image.key for image in found if not image.problem] == ["a/a", "a/b"]
        assert sum(image.problem is not None for image in found) == 1 - mark

    @pytest.mark.parametrize("size", [100, 512, 600, 1500, 1536, 1537, 2048, 2100, 3072])
    def test_a_cut_off_file_is_noticed_wherever_it_was_cut(self, tmp_path: Path, size: int):
        path = tmp_path / "a.tar"
        path.write_bytes(tar_of("a.png") + tar_of("b.png", "c.png")[:size])
        *found, last = listing.list_images(str(path))
        assert found[0].key == "a/a"
        assert last.problem
        assert last.problem.cause is Cause.BAD_LIST

    @pytest.mark.parametrize("member", [1, 2])
    def test_a_damaged_header_is_noticed(self, tmp_path: Path, member: int):
        path = tmp_path / "a.tar"
        data = bytearray(tar_of("a.png", "b.png", "c.png"))
        data[member * 1536 + 10] ^= 0xFF
        path.write_bytes(data)
        *found, last = listing.list_images(str(path))
        assert [image.key for image in found] == ["a/a", "a/b"][:member]
        assert last.problem

    def test_names_are_normal_keys_and_what_leaves_the_file_keeps_its_odd_name(self, tmp_path: Path):
        path = tmp_path / "a.tar"
        path.write_bytes(tar_of("./x/./b.png", "y//c.png", "z/../d.png", "/e.png", "../f.png"))
        assert list(read(path)) == ["a/x/b", "a/y/c", "a/d", "a//e", "a/../f"]

    def test_members_that_are_no_images_are_counted(self, tmp_path: Path):
        path, ignored = tmp_path / "a.tar", Ignored()
        path.write_bytes(tar_of("a.png", "a.json", "b.json", "._a.png", "README"))
        assert [image.key for image in listing.list_images(str(path), ignored=ignored)] == ["a/a"]
        assert ignored.counts == {".json": 2, "hidden": 1, "without_extension": 1}


IMAGES = [b"1", b"2", b"3"]
STRUCTS = [{"bytes": data, "path": "x.png"} for data in IMAGES]


class TestParquet:
    @pytest.mark.parametrize(
        "kind",
        [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1), pa.dictionary(pa.int32(), pa.binary())],
    )
    def test_bytes_of_every_type_are_read(self, tmp_path: Path, kind: pa.DataType):
        path = tmp_path / "a.parquet"
        array = pa.array(IMAGES).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(IMAGES, kind)
        path.write_bytes(parquet_of({"picture": array}))
        assert list(read(path).values()) == IMAGES

    @pytest.mark.parametrize("name", ["image", "image.bytes", "a.b.c", "a:b", "bytes", ".", "ü", 'a"b', "", "%d %s"])
    def test_columns_may_have_any_name(self, tmp_path: Path, name: str):
        path = tmp_path / "a.parquet"
        path.write_bytes(parquet_of({name: pa.array(IMAGES), f"{name}.path": pa.array(["x"] * 3)}))
        assert list(read(path).values()) == IMAGES

    @pytest.mark.parametrize("name", ["image", "a.b", "a:b", "bytes", "image.bytes"])
    def test_structs_with_bytes_may_have_any_name(self, tmp_path: Path, name: str):
        path = tmp_path / "a.parquet"
        path.write_bytes(parquet_of({name: pa.array(STRUCTS), "label": pa.array([0] * 3)}))
        assert list(read(path).values()) == IMAGES

    def test_a_column_called_like_a_field_of_another_isnt_taken_for_it(self, tmp_path: Path):
        path = tmp_path / "a.parquet"
        others = pa.array([b"x", b"y", b"z"])
        path.write_bytes(parquet_of({"image.bytes": others, "image": pa.array(STRUCTS)}))
        assert list(read(path).values()) == IMAGES

    @pytest.mark.parametrize(
        "columns", [["mask", "image"], ["thumbnail", "jpg"], ["Image", "bytes"], ["image.bytes", "image.hash"]]
    )
    def test_of_several_the_one_named_like_an_image_is_taken(self, tmp_path: Path, columns: list[str]):
        path = tmp_path / "a.parquet"
        wanted = {"image", "jpg", "Image", "image.bytes"}
        arrays = {name: pa.array(IMAGES if name in wanted else [b"-"] * 3) for name in columns}
        path.write_bytes(parquet_of(arrays))
        assert list(read(path).values()) == IMAGES

    def test_checksums_of_fixed_size_are_no_images(self, tmp_path: Path):
        path = tmp_path / "a.parquet"
        path.write_bytes(parquet_of({"picture": pa.array(IMAGES), "sha256": pa.array([b"x" * 32] * 3, pa.binary(32))}))
        assert list(read(path).values()) == IMAGES

    def test_several_that_nothing_tells_apart_are_refused_by_name(self, tmp_path: Path):
        path = tmp_path / "a.parquet"
        path.write_bytes(parquet_of({"left": pa.array(IMAGES), "right": pa.array(STRUCTS)}))
        with pytest.raises(UserError, match="several columns could hold the images: left, right"):
            list(listing.list_images(str(path)))

    @pytest.mark.parametrize("array", [pa.array([b"1", None, b"3"]), pa.array([STRUCTS[0], None, STRUCTS[2]])])
    def test_an_empty_cell_costs_its_row(self, tmp_path: Path, array: pa.Array):
        path = tmp_path / "a.parquet"
        path.write_bytes(parquet_of({"image": array}))
        first, second, third = listing.list_images(str(path))
        assert shards.read_member(first.uri, first.member) == b"1"
        assert shards.read_member(third.uri, third.member) == b"3"
        with pytest.raises(ImageError, match="holds no bytes") as error:
            shards.read_member(second.uri, second.member)
        assert error.value.cause is Cause.DAMAGED

    @pytest.mark.parametrize("column", ["image", "key"])
    def test_a_damaged_row_group_costs_itself_alone(self, tmp_path: Path, column: str):
        path = tmp_path / "a.parquet"
        keys = [f"k{index}" for index in range(30)]
        table = pa.table({"key": keys, "image": [str(index).encode() * 50 for index in range(30)]})
        pq.write_table(table, path, row_group_size=10, use_dictionary=False, compression="snappy")
        data = bytearray(path.read_bytes())
        chunk = pq.ParquetFile(path).metadata.row_group(1).column(table.column_names.index(column))
        data[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = (
            b"\xff" * chunk.total_compressed_size
        )
        path.write_bytes(data)
        causes, found = set(), []
        for image in listing.list_images(str(path)):
            try:
                if image.problem:
                    raise image.problem
                shards.read_member(image.uri, image.member)
                found.append(image.key)
            except ImageError as error:
                causes.add(error.cause)
        assert found == keys[:10] + keys[20:]
        assert causes == {Cause.DAMAGED if column == "image" else Cause.BAD_LIST}

    def test_a_list_of_images_in_a_cell_is_refused_with_what_was_expected(self, tmp_path: Path):
        path = tmp_path / "a.parquet"
        path.write_bytes(parquet_of({"images": pa.array([STRUCTS, STRUCTS])}))
        with pytest.raises(UserError, match=r"images in one of bytes, found \['images'\]"):
            list(listing.list_images(str(path)))


class TestManyShards:
    def test_one_that_cant_be_read_costs_itself_alone(self, tmp_path: Path):
        (tmp_path / "a.tar").write_bytes(tar_of("1.png"))
        (tmp_path / "b.tar").mkdir()
        (tmp_path / "b.tar/inner.tar").write_bytes(tar_of("2.png"))
        (tmp_path / "c.tar").symlink_to("gone.tar")
        (tmp_path / "d.tar").write_bytes(b"")
        (tmp_path / "e.tar").write_bytes(tar_of("3.png"))
        (tmp_path / "f.tar").symlink_to("e.tar")
        found = list(listing.list_images(f"{tmp_path}/*.tar"))
        assert [image.key for image in found if not image.problem] == ["a/1", "e/3", "f/3"]
        causes = {image.key: image.problem.cause for image in found if image.problem}
        assert causes == {"b": Cause.IS_A_DIRECTORY, "c": Cause.NOT_FOUND, "d": Cause.BAD_LIST}
        linked = next(image for image in found if image.key == "f/3")
        assert linked.details == storage.details(str(tmp_path / "e.tar"))

    @pytest.mark.parametrize("name", ["x.tar", "x.parquet", "list.csv", "x.png"])
    def test_a_folder_named_like_a_file_is_a_folder(self, tmp_path: Path, name: str):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x")
        assert list(read(tmp_path / name)) == ["a"]


def test_a_damaged_shard_of_an_output_costs_itself_alone(tmp_path: Path):
    job = {"map_sha256": "", "alpha": [0.0], "format": "png", "output_format": "webdataset", "output_shards": 3}
    (tmp_path / "job.json").write_text(json.dumps(job))
    urls = [f"{tmp_path}/images/shard-{index:05d}-of-00003.tar#{key}.png" for index, key in enumerate("abc")]
    rows = [ManifestRow(key, 0.0, url) for key, url in zip("abc", urls, strict=True)]
    pq.write_table(pa.Table.from_pylist([row._asdict() for row in rows]), tmp_path / "manifest-00000-of-00001.parquet")
    (tmp_path / "images").mkdir()
    for index, data in enumerate([tar_of("a.png"), b"no tar", tar_of("c.png")]):
        (tmp_path / f"images/shard-{index:05d}-of-00003.tar").write_bytes(data)
    found = list(listing.list_images(str(tmp_path)))
    assert [image.key for image in found if not image.problem] == ["a", "c"]
    assert [image.problem.cause for image in found if image.problem] == [Cause.BAD_LIST]
