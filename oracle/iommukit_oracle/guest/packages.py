"""Debian packages without installing them: fetched and checked by apt, unpacked into a cache folder.

apt works in folders of its own there, for any architecture and suite, so that the machine's own lists and packages stay as they
are and nobody has to be root.  apt checks the archive's signature and every file's checksum.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iommukit.errors import InputError

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CACHE = "IOMMUKIT_CACHE"
"""The environment variable that overrides the folder for what was fetched."""
TIMEOUT = 600
"""Seconds for one call of apt."""


class Unavailable(InputError):
    """What is needed is not on this machine and cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One suite of Debian for one of its architectures (``amd64``, ``arm64``, ``s390x``)."""

    arch: str
    suite: str = "bookworm"


def cache_folder() -> Path:
    """``$IOMMUKIT_CACHE``, else ``iommukit`` in the user's cache folder (XDG)."""
    own = os.environ.get(CACHE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iommukit"


class Packages:
    """The packages of an archive in a folder.

    Raises ``Unavailable`` with the reason where apt, the archive's key or the network is missing.
    """

    def __init__(self, archive: Archive, folder: Path | None = None) -> None:
        self.archive = archive
        self.folder = (folder or cache_folder()) / "debian" / f"{archive.suite}-{archive.arch}"

    def unpacked(self, name: str, version: str | None = None, *, wanted: Callable[[str], bool] = lambda path: True) -> Path:
        """The folder with a package's files, fetched when it is not there yet.

        Without ``version``, the archive's newest when it was first fetched.  ``wanted`` says by its path which file is unpacked.
        """
        target = self.folder / "unpacked" / (f"{name}={version}" if version else name)
        with self._alone():
            if not target.is_dir():
                package = self._download(name, version)
                try:
                    _unpack(package, target, wanted)
                finally:
                    package.unlink()
        return target

    def depends(self, name: str) -> list[str]:
        """The names of the packages that one depends on: a kernel's meta package names the kernel."""
        with self._alone():
            self._update(again=False)
            lines = self._apt("apt-cache", "depends", "--no-recommends", name).splitlines()
        return [line.split()[1] for line in lines if line.strip().startswith("Depends:")]

    def named(self, prefix: str, pattern: str) -> list[str]:
        """The names of the packages that match a pattern wholly, in the order of the numbers in them.

        They begin with ``prefix``.
        """
        with self._alone():
            self._update(again=False)
            names = self._apt("apt-cache", "pkgnames", prefix).split()
        found = [name for name in names if re.fullmatch(pattern, name)]
        return sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    def _download(self, name: str, version: str | None) -> Path:
        """The package's file.  Lists that have grown old name files that are gone: then once more with new lists."""
        wanted = f"{name}={version}" if version else name
        self._update(again=False)
        try:
            self._apt("apt-get", "download", wanted)
        except Unavailable:
            self._update(again=True)
            self._apt("apt-get", "download", wanted)
        return next(self.folder.glob(f"{name}_*.deb"))

    def _update(self, *, again: bool) -> None:
        done = self.folder / "updated"
        if done.exists() and not again:
            return
        for part in ("lists/partial", "cache/archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if not KEYRING.exists():
            raise Unavailable(f"{KEYRING} is missing; it comes with the package debian-archive-keyring")
        sources = self.folder / "sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {self.archive.suite} main\n")
        self._apt("apt-get", "update", "--error-on=any")
        done.touch()

    def _apt(self, *command: str) -> str:
        """Run apt on this folder alone and answer what it prints."""
        options = {
            "APT::Architecture": self.archive.arch,
            "APT::Architectures::": self.archive.arch,
            "APT::Sandbox::User": "",
            "Dir::State": self.folder,
            "Dir::State::status": os.devnull,
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": os.devnull,
            "Acquire::Languages": "none",
        }
        words = [command[0], *(word for name, value in options.items() for word in ("-o", f"{name}={value}")), *command[1:]]
        if shutil.which(command[0]) is None:
            raise Unavailable(f"{command[0]} is not on the path: Debian's packages cannot be fetched")
        try:
            done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{' '.join(command)} took longer than {TIMEOUT} s") from error
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise Unavailable(f"{' '.join(command)} for {self.archive.suite}, {self.archive.arch}: {said[0]}")
        return done.stdout

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes out of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _unpack(package: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack plain files into a folder that appears when it is complete."""
    if shutil.which("dpkg-deb") is None:
        raise Unavailable("dpkg-deb is not on the path: Debian's packages cannot be unpacked")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            path = member.name.removeprefix("./")
            content = tar.extractfile(member) if member.isreg() and ".." not in path and wanted(path) else None
            if content is not None:
                place = partial / path
                place.parent.mkdir(parents=True, exist_ok=True)
                with open(place, "wb") as file:
                    shutil.copyfileobj(content, file)
    if process.returncode:
        raise Unavailable(f"{package.name} cannot be unpacked")
    partial.rename(target)
