"""Sinks: strict JSON whatever the numbers, nothing lost, nothing pulled for a wrong argument."""

from __future__ import annotations

import io
import json
import math
import sys

import numpy as np
import pytest

from learnit_r8.streams import (
    collect,
    collect_jsonl,
    collect_pd,
    print_keys,
    take,
)
from tests.stream_common import Source, losses

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.usefixtures("one_thread")


class TestSinks:
    def test_collect_leaves_out_the_model_and_reads_scalars(self):
        events = [{"step": np.int64(1), "loss": torch.tensor(0.5), "model": object(), "rows": [1, 2]}]

        assert collect(events) == [{"step": 1, "loss": 0.5, "rows": [1, 2]}]
        assert type(collect(events)[0]["loss"]) is float

    def test_include_and_exclude(self):
        events = [{"model": object(), "a": 1, "b": 2}]

        assert collect(events, include=["model", "a", "z"]) == [{"a": 1}]
        assert collect(events, exclude=["a"]) == [{"b": 2}]
        with pytest.raises(ValueError, match=r"only one of include and exclude may be given, got \['a'\] and \['b'\]"):
            collect(events, include=["a"], exclude=["b"])
        with pytest.raises(TypeError, match=r"include must be a collection of keys, got 'loss'"):
            collect(events, include="loss")

    def test_a_wrong_filter_pulls_nothing(self, tmp_path):
        source = Source()
        for sink in (collect, collect_pd, lambda events, **how: collect_jsonl(events, tmp_path / "x", **how)):
            with pytest.raises(ValueError, match="only one of"):
                sink(source, include=["a"], exclude=["b"])

        assert source.pulled == 0
        assert not (tmp_path / "x").exists()

    def test_jsonl_numpy_scalars_and_tensors_are_type_errors(self, tmp_path):
        """(A defect elsewhere.) They, arrays, paths and nests of them have a JSON form."""
        event = {
            "a": np.float32(0.5),
            "b": torch.tensor(2),
            "c": np.arange(2),
            "d": {"e": (np.bool_(True), None)},
            "f": torch.ones(1, 2, requires_grad=True),
            "g": tmp_path,
            1: "one",
        }
        collect_jsonl([event], tmp_path / "log.jsonl")

        expected = {
            "a": 0.5,
            "b": 2,
            "c": [0, 1],
            "d": {"e": [True, None]},
            "f": [[1.0, 1.0]],
            "g": str(tmp_path),
            "1": "one",
        }
        assert json.loads((tmp_path / "log.jsonl").read_text()) == expected

    def test_jsonl_nan_is_json(self, tmp_path):
        """Strict JSON: numbers that are not finite are the strings that the journal uses, and read back by float()."""
        path = tmp_path / "log.jsonl"
        values = [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf), np.array([math.nan])]
        collect_jsonl(losses(*values), path)

        def refuse(name):
            raise AssertionError(name)

        got = [json.loads(text, parse_constant=refuse)["loss"] for text in path.read_text().splitlines()]
        assert got == ["nan", "inf", "-inf", "nan", "inf", ["nan"]]

    def test_jsonl_no_parent_directory(self, tmp_path):
        collect_jsonl(losses(1.0), tmp_path / "runs" / "today" / "log.jsonl")

        assert (tmp_path / "runs/today/log.jsonl").read_text() == '{"loss": 1.0}\n'

    def test_jsonl_is_flushed_per_line(self, tmp_path):
        """A run that dies leaves every epoch it finished."""
        path, seen = tmp_path / "log.jsonl", []

        def events():
            for step in range(3):
                yield {"step": step}
                seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
            raise OSError("died")

        with pytest.raises(OSError, match="died"):
            collect_jsonl(events(), path)
        assert seen == [1, 2, 3]

    def test_jsonl_overwrites(self, tmp_path):
        """Only when the first event is there; a run that fails before it does not cost the log of the one before."""
        path = tmp_path / "log.jsonl"
        collect_jsonl(losses(1.0, 2.0), path)

        def broken():
            raise OSError("no data")
            yield

        with pytest.raises(OSError, match="no data"):
            collect_jsonl(broken(), path)
        assert len(path.read_text().splitlines()) == 2
        collect_jsonl(losses(3.0), path, append=True)
        assert len(path.read_text().splitlines()) == 3
        collect_jsonl(losses(4.0), str(path))
        assert path.read_text() == '{"loss": 4.0}\n'
        collect_jsonl([], path)
        assert path.read_text() == ""

    def test_jsonl_into_an_open_file(self):
        file = io.StringIO()
        collect_jsonl(losses(1.0), file)

        assert file.getvalue() == '{"loss": 1.0}\n'

    def test_jsonl_names_what_it_cannot_write(self, tmp_path):
        with pytest.raises(
            TypeError, match=r"event\['state'\] must have a JSON form, got <object .*leave it out with exclude"
        ):
            collect_jsonl([{"state": object()}], tmp_path / "log.jsonl")

        collect_jsonl([{"a": 1, "state": object()}], tmp_path / "log.jsonl", exclude=["state"])
        assert (tmp_path / "log.jsonl").read_text() == '{"a": 1}\n'

    def test_pandas(self):
        pytest.importorskip("pandas")
        frame = collect_pd([{"step": 1, "loss": torch.tensor(0.5), "model": object()}])

        assert list(frame.columns) == ["step", "loss"]
        assert frame["loss"].dtype == float

    def test_pandas_is_named_where_it_is_missing(self, monkeypatch):
        source = Source()
        monkeypatch.setitem(sys.modules, "pandas", None)

        with pytest.raises(ImportError, match=r'collect_pd\(\) needs pandas, which .*; pip install "\.\[pandas\]"'):
            collect_pd(take(2)(source))
        assert source.pulled == 0


class TestPrintKeys:
    def test_numpy_scalars_unformatted(self, capsys):
        """(A defect elsewhere.) numpy and tensor scalars print like floats."""
        print_keys("a", "b", "c")({"step": np.int64(7), "a": np.float32(1 / 3), "b": torch.tensor(1 / 3), "c": 5})

        assert capsys.readouterr().out == "step=0007 a=0.3333 b=0.3333 c=5\n"

    def test_what_is_missing_or_no_number(self, capsys):
        print_keys("a", "b", "c")({"a": "ok", "c": math.nan})

        assert capsys.readouterr().out == "a=ok b=NA c=nan\n"

    def test_options(self, capsys):
        print_keys("a", precision=2, include_step=False)({"step": 1, "a": 1.0})
        print_keys("a", step_key="epoch")({"epoch": 3, "a": 1.0})
        print_keys("a")({"step": "first", "a": 1.0})

        assert capsys.readouterr().out == "a=1.00\nepoch=0003 a=1.0000\nstep=first a=1.0000\n"
