"""A directory of pipelines from the author's disk to a worker's: build, validate, publish, fetch, load."""

import datetime as dt
import gzip
import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from runner.authoring import Context
from runner.bundle import BUILTIN, BundleError, build, fetch, load, publish, validate
from runner.bundle.build import Archive, digest
from runner.bundle.load import Known, _forget
from runner.settings import SluiceError, UsageError
from runner.state import db
from runner.storage import MissingError, Storage

GOOD = """
import helper
from runner.authoring import dag, task

@task
def hello() -> str:
    return helper.WORD

@dag
def greeting():
    hello()
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str = "pipelines", **files: str) -> Path:
        directory = tmp_path / "sources" / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (directory / f"{file}.py").write_text(content)
        return directory

    return make


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(f"file://{tmp_path}/artifacts")


@pytest.fixture(autouse=True)
def forget_loaded() -> Iterator[None]:
    yield
    _forget()


def put(storage: Storage, bundle: Path | Archive) -> str:
    archive = build(bundle) if isinstance(bundle, Path) else bundle
    storage.put(f"bundles/{archive.version}.tar.gz", archive.data)
    return archive.version


class TestBuild:
    def test_the_same_content_is_the_same_archive(self, write: Write) -> None:
        # Given one content in two places, with other times, modes and leftovers
        one = write("here/pipelines", greeting=GOOD, helper="WORD = 'hi'")
        two = write("there/pipelines", helper="WORD = 'hi'", greeting=GOOD)
        os.utime(two / "helper.py", (1, 1))
        (two / "helper.py").chmod(0o600)
        (two / "__pycache__").mkdir()
        (two / "__pycache__" / "helper.cpython-311.pyc").write_bytes(b"x")
        (two / ".git").mkdir()
        (two / ".git" / "HEAD").write_text("ref")
        (two / "__pycache__" / "helper.cpython-311.pyc.140").write_bytes(b"half written")
        # Then they are one archive, without a time in it
        assert build(one) == build(two)
        assert build(one).data[4:8] == bytes(4)

    @pytest.mark.parametrize("change", [("helper", "WORD = 'ho'"), ("more", "")])
    def test_other_content_is_another_version(self, write: Write, change: tuple[str, str]) -> None:
        before = build(write(greeting=GOOD, helper="WORD = 'hi'")).version
        after = build(write(**{change[0]: change[1]})).version
        assert before != after and len(after) == 16

    def test_links_and_what_is_no_directory_are_refused(self, write: Write, tmp_path: Path) -> None:
        directory = write(greeting=GOOD)
        (directory / "out").symlink_to("/etc")
        with pytest.raises(UsageError, match="is a link"):
            build(directory)
        with pytest.raises(UsageError, match="is not a directory"):
            build(tmp_path / "gone")

    def test_data_beside_the_pipelines_has_a_limit(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["runner.bundle.build"], "LIMIT", 1000)
        with pytest.raises(UsageError, match=r"larger than .* \(at data\.py\)"):
            build(write(data="#" * 2000))


class TestValidate:
    def test_a_good_directory_gives_its_dags(self, write: Write) -> None:
        # Given a file with a DAG made by a call, one that nobody called, and an author's test beside it
        extra = GOOD + "\n@dag(dag_id='second', schedule='@daily')\ndef other():\n    hello()\nother()\n"
        directory = write(greeting=extra, helper="WORD = 'hi'", test_greeting="import not_there", conftest="1/0")
        # When it is validated, then both are found and the directory stays clean
        assert [s.dag_id for s in validate(directory)] == ["greeting", "second"]
        assert not list(directory.rglob("__pycache__"))

    @pytest.mark.parametrize(
        ("code", "problem"),
        [
            ("def f(:\n    pass\n", "bad.py:1: syntax error: "),
            ("\nimport not_there\n", "bad.py:2: import error: No module named 'not_there'"),
            ("from runner.authoring import nothing\n", "bad.py:1: import error: cannot import name 'nothing'"),
            ("\n\nx = 1 / 0\n", "bad.py:3: ZeroDivisionError while importing: division by zero"),
            ("import sys\nsys.exit(3)\n", "bad.py:2: SystemExit while importing: 3"),
            (
                "from runner.authoring import DAG\n\nDAG('x', schedule='61 * * * *')\n",
                "bad.py:3: DAG 'x': bad schedule '61 * * * *': Bad minute",
            ),
            (
                "from runner.authoring import DAG\nDAG('x', schedule='0 0 31 2 *')\n",
                "bad.py:2: DAG 'x': bad schedule '0 0 31 2 *': ",
            ),
            (
                "from runner.authoring import DAG, Market\nDAG('x', schedule=Market('XXXX'))\n",
                "bad.py:2: DAG 'x': bad schedule 'XXXX close': unknown exchange 'XXXX'; e.g. XNYS",
            ),
            (
                "from runner.authoring import DAG, Cron\nDAG('x', schedule=Cron('0 9 * * *') & Cron('0 10 * * *'))\n",
                "bad.py:2: DAG 'x': bad schedule '0 9 * * * & 0 10 * * *': it never comes",
            ),
            (
                "from runner.authoring import dag\nfrom datetime import timedelta\n\n"
                "@dag(schedule=timedelta(0))\ndef x():\n    pass\n",
                "bad.py:4: DAG 'x': an interval must be a second or more, not 0s",
            ),
            (
                "from runner.authoring import DAG\nDAG('x', timezone='Mars/Olympus')\n",
                "bad.py:2: DAG 'x': unknown time zone 'Mars/Olympus'",
            ),
            (
                "from runner.authoring import DAG\nDAG('x')\n\nDAG('x')\n",
                "bad.py:4: duplicate dag id 'x': also made at ",
            ),
            (
                "from runner.authoring import dag, task\n"
                "@task\ndef a(): pass\n"
                "@task\ndef b(): pass\n"
                "@dag\ndef d():\n    x, y = a(), b()\n    x >> y\n    y >> x\n",
                "bad.py:10: DAG 'd' has a cycle: ",
            ),
            ("x = 1\n", "no DAG found"),
        ],
    )
    def test_each_problem_has_its_file_and_line(self, write: Write, code: str, problem: str) -> None:
        with pytest.raises(BundleError) as e:
            validate(write(bad=code))
        assert problem in str(e.value.problems[0])
        assert problem in str(e.value) and e.value.hint

    def test_all_problems_are_told_at_once(self, write: Write) -> None:
        directory = write(a="1/0", b="import gone", c=GOOD, helper="WORD = 1", json="x = 1")
        with pytest.raises(BundleError, match=r"and 2 more") as e:
            validate(directory)
        assert [p.file for p in e.value.problems] == ["a.py", "b.py", "json.py"]

    def test_a_duplicate_over_two_files_names_both(self, write: Write) -> None:
        one = "from runner.authoring import DAG\nDAG('x')\n"
        with pytest.raises(BundleError) as e:
            validate(write(first=one, second=one))
        [problem] = e.value.problems
        assert (problem.file, problem.line) == ("second.py", 2) and "first.py:2" in problem.what

    def test_a_file_that_does_not_end_is_stopped_with_what_it_started(self, write: Write, tmp_path: Path) -> None:
        # Given a file that starts a process and then waits for ever
        mark = tmp_path / "pid"
        code = (
            "import subprocess, time, pathlib\n"
            "p = subprocess.Popen(['sleep', '600'])\n"
            f"pathlib.Path({str(mark)!r}).write_text(str(p.pid))\n"
            "time.sleep(600)\n"
        )
        # When it is validated with a limit
        started = time.monotonic()
        with pytest.raises(BundleError, match=r"slow\.py:4: still importing after 3 s"):
            validate(write(slow=code), timeout_seconds=3)
        # Then neither outlives it
        assert time.monotonic() - started < 10
        state = Path(f"/proc/{mark.read_text()}/stat")
        deadline = time.monotonic() + 5
        while state.exists() and state.read_text().split(") ")[1][0] != "Z" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not state.exists() or state.read_text().split(") ")[1][0] == "Z"

    def test_a_file_that_ends_the_process_is_named(self, write: Write) -> None:
        with pytest.raises(BundleError, match=r"crash\.py:3: SystemExit while importing: 7"):
            validate(write(crash="import os\nprint('bye')\nos._exit(7)\n", zoo=GOOD))
        segfault = "import ctypes\n\nctypes.string_at(0)\n"
        with pytest.raises(BundleError, match=r"crash\.py:3: the import ended the process \(signal SIGSEGV\)"):
            validate(write(crash=segfault, zoo=GOOD))

    def test_what_ends_the_process_hides_nothing_else(self, write: Write) -> None:
        # Given a file that hangs, one that is killed, one that eats all memory, and three with faults of other kinds
        directory = write(
            hangs="import time\nwhile True:\n    time.sleep(1)\n",
            killed="import os\n\nos.kill(os.getpid(), 9)\n",
            memory="\nx = bytearray(1 << 34)\n",
            broken="import gone\n",
            dates="from runner.authoring import DAG\nDAG('x', tags=[object()])\n",
            crossed="from runner.authoring import DAG, task\n@task\ndef t(): ...\n"
            "with DAG('one'):\n    a = t()\nwith DAG('two'):\n    a >> t()\n",
        )
        # When it is validated, then all six are told, each with its line where there is one
        with pytest.raises(BundleError, match="and 5 more") as e:
            validate(directory, timeout_seconds=5)
        assert [str(p).split("; ")[0] for p in e.value.problems] == [
            "broken.py:1: import error: No module named 'gone'",
            "crossed.py:7: task 't' belongs to DAG 'two', not to 'one': tasks of two DAGs cannot depend on each other",
            "dates.py:2: DAG 'x': ['tags'][0] is a object, which is not JSON",
            "hangs.py:3: still importing after 5 s",
            "killed.py: the import ended the process (signal SIGKILL)",
            "memory.py:2: needs more than 1024 MiB of memory while importing",
        ]

    def test_a_circle_is_told_once_and_with_the_others(self, write: Write) -> None:
        circle = "from runner.authoring import dag, task\n@task\ndef a(): pass\n"
        circle += "@dag\ndef d():\n    x, y = a(), a()\n    x >> y\n    y >> x\n"
        with pytest.raises(BundleError) as e:
            validate(write(bad="import gone", circle=circle))
        assert [(p.file, p.line) for p in e.value.problems] == [("bad.py", 1), ("circle.py", 8)]

    def test_what_the_environment_lacks_is_told_where_it_is_needed(self, write: Write) -> None:
        needs = "connections=['lake', 'mail'], pool='narrow'"
        code = f"from runner.authoring import dag, task\n\n@task({needs})\ndef load(): ...\n"
        directory = write(a=code + "\n@dag\ndef daily():\n    load()\n")
        with pytest.raises(BundleError) as e:
            validate(directory, known=Known(["mail", "other"], ["wide"]))
        what = "a.py:8: task 'load' needs the {}, which this environment does not have"
        assert [str(p) for p in e.value.problems] == [what.format("connection 'lake'"), what.format("pool 'narrow'")]
        assert validate(directory, known=Known(["mail", "lake"], ["narrow"])) == validate(directory)

    def test_what_a_file_prints_does_not_matter(self, write: Write) -> None:
        noisy = "import sys\nprint('x' * 1_000_000)\nsys.stderr.write('y' * 100_000)\n" + GOOD
        assert len(validate(write(greeting=noisy, helper="WORD = 1"))) == 1


class TestFetchAndLoad:
    def test_a_fetched_bundle_runs(self, write: Write, storage: Storage, tmp_path: Path) -> None:
        version = put(storage, write(greeting=GOOD, helper="WORD = 'hi'"))
        directory = fetch(version, storage=storage, cache=tmp_path / "cache")
        assert load(directory)["greeting"].test() == {"hello": "hi"}

    def test_the_second_time_needs_no_storage(self, write: Write, storage: Storage, tmp_path: Path) -> None:
        version = put(storage, write(greeting=GOOD))
        first = fetch(version, storage=storage, cache=tmp_path / "cache")
        storage.delete(f"bundles/{version}.tar.gz")
        assert fetch(version, storage=storage, cache=tmp_path / "cache") == first

    def test_two_versions_with_files_of_one_name(self, write: Write, storage: Storage, tmp_path: Path) -> None:
        # Given two versions, a helper in each
        directories = [
            fetch(put(storage, write(greeting=GOOD, helper=f"WORD = {n}")), storage=storage, cache=tmp_path / "c")
            for n in (1, 2)
        ]
        # Then loading the one and the other gives each its own helper
        assert [load(d)["greeting"].test()["hello"] for d in (*directories, directories[0])] == [1, 2, 1]
        assert sys.path.count(str(directories[0])) == 1

    def test_what_is_not_there_or_not_a_version(self, storage: Storage, tmp_path: Path) -> None:
        with pytest.raises(MissingError, match="there is no bundles/0123456789abcdef"):
            fetch("0123456789abcdef", storage=storage, cache=tmp_path)
        with pytest.raises(UsageError, match="not 16 hex digits"):
            fetch("../../etc", storage=storage, cache=tmp_path)
        with pytest.raises(SluiceError, match="no storage is known"):
            fetch("0123456789abcdef", storage=None, cache=tmp_path)

    def test_changed_content_is_refused(self, write: Write, storage: Storage, tmp_path: Path) -> None:
        version = put(storage, write(greeting=GOOD))
        storage.put(f"bundles/{version}.tar.gz", build(write(greeting=GOOD + "\n# evil")).data)
        with pytest.raises(SluiceError, match="holds other content than was published"):
            fetch(version, storage=storage, cache=tmp_path / "cache")
        storage.put(f"bundles/{version}.tar.gz", b"no gzip")
        with pytest.raises(SluiceError, match="is damaged"):
            fetch(version, storage=storage, cache=tmp_path / "cache")
        assert [p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")] == []

    def test_the_whole_sha256_counts_where_it_is_known(self, write: Write, storage: Storage, tmp_path: Path) -> None:
        version = put(storage, archive := build(write(greeting=GOOD)))
        with pytest.raises(SluiceError, match="holds other content"):
            fetch(version, storage=storage, cache=tmp_path / "cache", sha256=version + "0" * 48)
        assert fetch(version, storage=storage, cache=tmp_path / "cache", sha256=archive.sha256).is_dir()

    def test_a_copy_that_was_damaged_on_the_disk_is_fetched_again(
        self, write: Write, storage: Storage, tmp_path: Path
    ) -> None:
        version = put(storage, write(greeting=GOOD, helper="WORD = 'hi'"))
        directory = fetch(version, storage=storage, cache=tmp_path / "cache")
        (directory / "helper.py").write_text("")
        assert load(fetch(version, storage=storage, cache=tmp_path / "cache"))["greeting"].test() == {"hello": "hi"}

    def test_an_archive_cannot_write_outside(self, storage: Storage, tmp_path: Path) -> None:
        # Given an archive, rightly named, with a way out in it
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("../../escaped.py")
            tar.addfile(info, io.BytesIO(b""))
        version = digest(buffer.getvalue())[:16]
        storage.put(f"bundles/{version}.tar.gz", gzip.compress(buffer.getvalue()))
        # When it is fetched, then nothing is written
        with pytest.raises(SluiceError, match=r"cannot be unpacked: .* is outside the archive"):
            fetch(version, storage=storage, cache=tmp_path / "cache")
        assert not list(tmp_path.rglob("escaped.py"))
        assert not list((tmp_path / "cache").iterdir())

    def test_the_last_used_stay_and_so_does_what_is_loaded(
        self, write: Write, storage: Storage, tmp_path: Path
    ) -> None:
        cache = tmp_path / "cache"
        versions = [put(storage, write(greeting=GOOD, helper=f"WORD = {n}")) for n in range(5)]
        # Given an old version that another process has loaded
        in_use = fetch(versions[0], storage=storage, cache=cache, keep=2)
        script = (
            "import sys, pathlib; from runner.bundle import load; "
            "load(pathlib.Path(sys.argv[1])); print('loaded', flush=True); sys.stdin.read()"
        )
        user = subprocess.Popen(
            [sys.executable, "-c", script, str(in_use)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert user.stdout is not None and user.stdout.readline() == b"loaded\n"
            os.utime(in_use, (0, 0))
            # When more come than are kept
            for age, version in enumerate(versions[1:], start=1):
                os.utime(fetch(version, storage=storage, cache=cache, keep=2), (age, age))
            fetch(versions[4], storage=storage, cache=cache, keep=2)
            # Then the newest two and the one in use are there, the others gone without a trace
            there = {p.name for p in cache.iterdir()}
            kept = {versions[0], versions[3], versions[4]}
            assert there == kept | {f"{v}.lock" for v in kept}
        finally:
            user.communicate()
        # And once its user has ended, it goes
        fetch(versions[4], storage=storage, cache=cache, keep=2)
        assert versions[0] not in {p.name for p in cache.iterdir()}

    def test_many_processes_fetch_one_version(self, write: Write, storage: Storage, tmp_path: Path) -> None:
        version = put(storage, write(greeting=GOOD, helper="WORD = 'hi'"))
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            found = pool.starmap(_fetch, [(version, storage.url, tmp_path / "cache")] * 4)
        assert set(found) == {str(tmp_path / "cache" / version)}
        assert {p.name for p in (tmp_path / "cache").iterdir()} == {version, f"{version}.lock"}

    def test_load_tells_all_problems(self, write: Write) -> None:
        with pytest.raises(BundleError) as e:
            load(write(a="1/0", b="2/0"))
        assert len(e.value.problems) == 2

    def test_the_builtin_bundle_needs_nothing(self, tmp_path: Path) -> None:
        dags = load(fetch(BUILTIN, storage=None, cache=tmp_path))
        context = Context(
            dag_id="sluice_heartbeat",
            run_id="1",
            task_id="beat",
            node="i-1",
            logical_date=dt.datetime.now(dt.UTC),
        )
        result = dags["sluice_heartbeat"].run_task("beat", context, {})
        assert result["node"] == "i-1" and result["time"]


def _fetch(version: str, url: str, cache: Path) -> str:
    return str(fetch(version, storage=Storage.open(url), cache=cache))


class TestPublish:
    @pytest.fixture
    def engine(self, database_url: str) -> Iterator[Any]:
        engine = db.connect(database_url)
        yield engine
        engine.dispose()

    def test_it_is_uploaded_once_and_active_with_the_commit(self, write: Write, storage: Storage, engine: Any) -> None:
        directory = write(greeting=GOOD, helper="WORD = 'hi'")
        # When a directory is published twice
        with engine.begin() as connection:
            first = publish(directory, storage=storage, connection=connection, who="test")
        with engine.begin() as connection:
            again = publish(directory, storage=storage, connection=connection, who="test")
            # Then the second changes nothing, and its DAG runs this version from storage
            assert (first.uploaded, again.uploaded) == (True, False)
            assert first[:4] == again[:4] and first.name == "pipelines"
            active = connection.execute(text("SELECT dag_id, bundle_version FROM dag")).all()
        assert active == [("greeting", first.version)]
        assert storage.exists(f"bundles/{first.version}.tar.gz")

    def test_a_broken_one_changes_nothing(self, write: Write, storage: Storage, engine: Any) -> None:
        with engine.begin() as connection:
            good = publish(write(greeting=GOOD, helper="WORD = 1"), storage=storage, connection=connection, who="t")
            with pytest.raises(BundleError, match=r"bundle pipelines: bad\.py:1: import error"):
                publish(write(bad="import gone"), storage=storage, connection=connection, who="t")
            assert connection.execute(text("SELECT bundle_version FROM dag")).scalars().all() == [good.version]
        assert len(storage.list("bundles")) == 1

    def test_what_the_archive_leaves_out_is_missed_before_it_is_active(
        self, write: Write, storage: Storage, engine: Any
    ) -> None:
        directory = write(greeting=GOOD.replace("import helper", "from _hidden import helper"))
        (directory / ".secret.py").write_text("WORD = 1")
        (directory / "_hidden").mkdir()
        (directory / "_hidden" / "helper.pyc").write_bytes(b"")
        with engine.begin() as connection, pytest.raises(BundleError, match="import error"):
            publish(directory, storage=storage, connection=connection, who="t")
