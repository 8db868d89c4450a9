"""Says which pinned distributions of this environment are not as they were installed.

    .venv/bin/python -I self_lengthen/environment.py requirements-cpu.txt
    .venv/bin/python -I self_lengthen/environment.py --adopt /path/to/the/repository

The first form reads the pins and every RECORD in site-packages, and prints the broken pins on
stdout, one a line, ready for `pip install --no-deps --force-reinstall`; why they are broken goes to
stderr. `pip` is checked too, at any version. Exit status: 0 nothing is broken, 1 something is,
2 the requirements file cannot be read, or this is not the Python of the repository's .venv.

The second form removes what an interrupted pip left behind in site-packages, and makes the modules
in that folder importable from anywhere (it writes self-lengthen.pth). Where the folder was moved or
copied with its environment, it also mends the paths in the scripts of .venv/bin.

setup.sh calls both before anything is installed, so: standard library only.
"""

import argparse
import csv
import operator
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VENV = Path(__file__).resolve().parents[1] / ".venv"
LINK_NAME = "self-lengthen.pth"
PIP_NEEDS = ("METADATA", "RECORD")
BROKEN_EXIT = 1
USAGE_EXIT = 2

PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;\s*(.+))?")
CLAUSE = re.compile(r"""(\w+)\s*(==|!=|<=|>=|<|>)\s*["']([^"']*)["']""")
COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
PYTHON_PARTS = {"python_version": 2, "python_full_version": 3}
PLATFORM = {
    "sys_platform": sys.platform,
    "platform_system": platform.system(),
    "platform_machine": platform.machine(),
}


@dataclass(frozen=True)
class Pin:
    """One line of a requirements file; an empty version fits any."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


def read_pins(path: Path) -> list[Pin]:
    """The pins of a requirements file that apply on this machine.

    A line is `name==version`, with or without a marker (see `applies`). Comments and empty lines
    are skipped. Raises ValueError for any other line, naming file and line.
    """
    pins = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        match = PIN.fullmatch(text)
        if match is None:
            raise ValueError(f"{path}:{number}: expected 'name==version', found '{text}'")
        name, version, marker = match.groups()
        if marker is None or applies(marker, where=f"{path}:{number}"):
            pins.append(Pin(name, version))
    return pins


def applies(marker: str, where: str) -> bool:
    """Whether an environment marker holds here.

    Supported: python_version and python_full_version with any comparison; sys_platform,
    platform_system and platform_machine with == and !=; several joined by `and`. Brackets, `or`,
    `in` and the other variables are not: ValueError.
    """
    return all(_holds(clause.strip(), where) for clause in re.split(r"\s+and\s+", marker.strip()))


def _holds(clause: str, where: str) -> bool:
    match = CLAUSE.fullmatch(clause)
    if match is None:
        raise ValueError(f"{where}: marker '{clause}' is not supported")
    variable, comparison, wanted = match.groups()
    if variable in PYTHON_PARTS and re.fullmatch(r"\d+(\.\d+)*", wanted):
        parts = PYTHON_PARTS[variable]
        version = ([int(part) for part in wanted.split(".")] + [0, 0])[:parts]
        return COMPARISONS[comparison](list(sys.version_info[:parts]), version)
    if variable in PLATFORM and comparison in ("==", "!="):
        return COMPARISONS[comparison](PLATFORM[variable], wanted)
    raise ValueError(f"{where}: marker '{clause}' is not supported")


def find_broken(pins: Iterable[Pin], site_packages: Path) -> dict[Pin, str]:
    """The pins that are not installed in full, each with the reason."""
    installed = _installed(site_packages)
    listing = cache(_file_names)  # many distributions share a folder; a list per folder is fast
    broken = {}
    for pin in pins:
        folders = installed.get(_normal_name(pin.name), [])
        reason = _fault(pin, folders)
        if reason is None:
            reason = _missing_file(site_packages, folders[0], listing)
        if reason is not None:
            broken[pin] = reason
    return broken


def _installed(site_packages: Path) -> dict[str, list[str]]:
    """The .dist-info folders by normalised distribution name."""
    found: dict[str, list[str]] = {}
    for entry in os.listdir(site_packages) if site_packages.is_dir() else []:
        if entry.endswith(".dist-info"):
            found.setdefault(_normal_name(entry.split("-")[0]), []).append(entry)
    return found


def _fault(pin: Pin, folders: list[str]) -> str | None:
    """Why the metadata folders of a distribution do not fit its pin; None when they do."""
    if not folders:
        return "not installed"
    if len(folders) > 1:
        return f"installed more than once: {', '.join(sorted(folders))}"
    version = folders[0].removesuffix(".dist-info").split("-", 1)[-1]
    if pin.version and _normal_version(version) != _normal_version(pin.version):
        return f"version {version} is installed"
    return None


def _missing_file(
    site_packages: Path, dist_info: str, listing: Callable[[str], frozenset[str]]
) -> str | None:
    """The first thing that an installed distribution lacks; None when it is complete.

    Left out: compiled files, which Python makes anew, and absolute paths, which pip records for
    files put outside the environment.
    """
    try:
        record = (site_packages / dist_info / "RECORD").read_text(encoding="utf-8")
    except OSError:
        return f"{dist_info}/RECORD cannot be read"
    # pip writes INSTALLER when everything else is in place: without it an install was cut short.
    if "INSTALLER" not in listing(str(site_packages / dist_info)):
        return f"{dist_info}/INSTALLER is missing"
    for path in _recorded_paths(record):
        folder, _, name = path.rpartition("/")
        if path.endswith(".pyc") or path.startswith("/") or name == "__pycache__":
            continue
        if name not in listing(f"{site_packages}/{folder}"):
            return f"{path} is missing"
    return None


def _recorded_paths(record: str) -> Iterable[str]:
    for line in record.splitlines():
        if line.startswith('"'):  # only a path with a comma is quoted
            yield next(csv.reader([line]))[0]
        elif line:
            yield line.partition(",")[0]


def _file_names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _normal_version(version: str) -> str:
    """Wheels may write 2024.04.01 for what a pin calls 2024.4.1."""
    return re.sub(r"\b0+(?=\d)", "", version.lower())


def tidy(site_packages: Path) -> None:
    """Remove what an interrupted pip leaves and cannot mend itself.

    That is folders set aside during an uninstallation (`~orch`), and metadata without METADATA or
    RECORD, with which pip refuses to uninstall; the distribution then counts as not installed.
    """
    for entry in site_packages.iterdir():
        aside = entry.name.startswith("~")
        metadata = entry.name.endswith(".dist-info")
        if aside or (metadata and not all(_has_text(entry / name) for name in PIP_NEEDS)):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _has_text(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def link(root: str, site_packages: Path, scripts: Path) -> None:
    """Name `root` in site-packages; mend scripts that still name the folder it was moved from."""
    pth = site_packages / LINK_NAME
    before = pth.read_text(encoding="utf-8").strip() if pth.exists() else ""
    if before == root:
        return
    if before:
        for script in scripts.iterdir():
            if script.is_file() and not script.is_symlink():
                _replace_in(script, f"{before}/.venv".encode(), f"{root}/.venv".encode())
    _write(pth, f"{root}\n".encode())


def _replace_in(script: Path, old: bytes, new: bytes) -> None:
    content = script.read_bytes()
    if b"\0" not in content and old in content:  # a program in machine code is left alone
        _write(script, content.replace(old, new), mode=script.stat().st_mode)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write beside and rename, so that a file that exists is complete."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.chmod(mode)
    beside.replace(path)


def main(argv: list[str] | None = None, site_packages: Path | None = None) -> int:
    """The command line; returns the exit status. `site_packages` is for tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("requirements", nargs="?", type=Path, help="file of pins to check")
    choice.add_argument("--adopt", metavar="ROOT", help="tidy up; make ROOT importable")
    arguments = parser.parse_args(argv)
    if site_packages is None and Path(sys.prefix).resolve() != VENV.resolve():
        # A .venv that lost its pyvenv.cfg: pip would install into the Python beneath it.
        print(f"environment: {sys.executable} is not the Python of {VENV}", file=sys.stderr)
        return USAGE_EXIT
    site_packages = site_packages or Path(sysconfig.get_path("purelib"))
    if arguments.adopt:
        tidy(site_packages)
        link(arguments.adopt, site_packages, Path(sysconfig.get_path("scripts")))
        return 0
    try:
        pins = read_pins(arguments.requirements)
    except (OSError, ValueError) as error:
        print(f"environment: {error}", file=sys.stderr)
        return USAGE_EXIT
    broken = find_broken([*pins, Pin("pip", "")], site_packages)
    for pin, reason in broken.items():
        print(pin)
        print(f"{pin}: {reason}", file=sys.stderr)
    return BROKEN_EXIT if broken else 0


if __name__ == "__main__":
    sys.exit(main())
