from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from dpce_cli.core.errors import DataError
from dpce_cli.core.models.matconvnet import mat_files
from dpce_cli.core.models.matconvnet.mat_files import read_mat
from tests.mat_files import save_v7, save_v73

Save = Callable[[Path, dict[str, Any]], Path]
BOTH = pytest.mark.parametrize("save", [save_v7, save_v73])


@BOTH
def test_both_versions_hold_the_same_values(save: Save, tmp_path: Path) -> None:
    filters = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    value = {
        "params": [
            {"name": "fc1f", "value": filters, "opts": ["CuDNN", [np.ones((1, 2))]]},
            {"name": "é\N{SNOWMAN}\N{PILE OF POO}", "value": np.ones((3, 1, 1, 1)), "opts": []},
        ],
        "meta": {"normalization": {"averageImage": np.array([[1.0], [2.0], [3.0]])}, "note": ""},
    }
    read = read_mat(save(tmp_path / "net.mat", {"net": value, "state": np.zeros((2, 2))}), ("net",))

    assert read.keys() == {"net"}
    first, second = read["net"]["params"]
    assert (first["name"], second["name"]) == ("fc1f", "é\N{SNOWMAN}\N{PILE OF POO}")
    assert np.array_equal(first["value"], filters)
    assert second["value"].shape == (3, 1)
    assert first["opts"][0] == "CuDNN"
    assert np.array_equal(first["opts"][1][0], np.ones((1, 2)))
    assert len(second["opts"]) == 0
    assert read["net"]["meta"]["note"] == ""
    assert np.array_equal(read["net"]["meta"]["normalization"]["averageImage"], [[1], [2], [3]])


@BOTH
def test_a_file_without_the_variable_is_read_as_nothing(save: Save, tmp_path: Path) -> None:
    assert read_mat(save(tmp_path / "other.mat", {"x": np.ones((1, 1))}), ("net",)) == {}


@BOTH
@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
def test_a_file_cut_short_is_refused(save: Save, share: float, tmp_path: Path) -> None:
    values = {"params": [{"name": f"p{i}", "value": np.ones((50, 50))} for i in range(20)]}
    path = save(tmp_path / "net.mat", {"net": values})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"net\.mat: cannot be read as a MATLAB file \(.*\); check the file, or"):
        read_mat(path, ("net",))


@pytest.mark.parametrize("content", [b"", b"not MATLAB's", b"\x89HDF\r\n\x1a\n", pickle.dumps({"net": 1}), bytes(4096)])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"net\.mat: cannot be read as a MATLAB file"):
        read_mat(tmp_path / "net.mat", ("net",))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"net\.mat: cannot be read \(No such file or directory\); check the path"):
        read_mat(tmp_path / "net.mat", ("net",))


def test_circular_references_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.mat", "w") as file:
        cell = file.create_dataset("net", (1, 1), h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
        cell[0, 0] = file["net"].ref
    with pytest.raises(DataError, match="recursion"):
        read_mat(tmp_path / "net.mat", ("net",))


def test_compressed_files_are_read(tmp_path: Path) -> None:
    savemat(tmp_path / "net.mat", {"net": {"a": np.ones((100, 100))}}, do_compression=True)
    assert read_mat(tmp_path / "net.mat", ("net",))["net"]["a"].sum() == 10_000


@pytest.mark.parametrize(("byte", "bit"), [(329, 3), (241, 3), (306, 1)])
def test_a_flipped_bit_that_crashes_scipy_is_a_data_error(tmp_path: Path, byte: int, bit: int) -> None:
    """A process that called `loadmat` on these files ended with SIGSEGV or SIGBUS."""
    path = tmp_path / "net.mat"
    savemat(path, {"net": {"a": np.ones((2, 2)), "b": "text"}})
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    with suppress(DataError):  # another SciPy may read it
        assert read_mat(path, ("net",)).keys() <= {"net"}


def test_cells_that_refer_to_each_other_again_and_again_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mat_files, "_MOST_VALUES", 2000)
    with h5py.File(tmp_path / "net.mat", "w") as file:
        inner = file.create_dataset("last", data=np.ones((1, 1)))
        for level in range(40):
            cell = file.create_dataset(f"level{level}", (1, 2), h5py.ref_dtype)
            cell.attrs["MATLAB_class"] = np.bytes_("cell")
            cell[0, 0] = cell[0, 1] = inner.ref
            inner = cell
        file["net"] = inner
    with pytest.raises(ValueError, match="it has more than 2,000 values"):
        mat_files._read_hdf5(tmp_path / "net.mat", ("net",))


def test_variables_in_other_files_are_not_read(tmp_path: Path) -> None:
    save_v73(tmp_path / "secret.mat", {"net": np.ones((1, 1))})
    with h5py.File(tmp_path / "net.mat", "w") as file:
        file["net"] = h5py.ExternalLink("secret.mat", "/net")
    with pytest.raises(DataError, match="'net' is a link to somewhere else"):
        read_mat(tmp_path / "net.mat", ("net",))
