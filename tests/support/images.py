"""The images of the Dockerfile without a container engine, in roots that Debian's packages fill.

    python -m support.images [--folder FOLDER] [TARGET …]

Every instruction of a target, and of the stages that it is made from, is done in its order: what
is copied is what .dockerignore leaves, a RUN is its own words in a namespace with the mounts that
it asks for, and pip is told what this machine's is told. At the end each image's CMD runs as its
user with a read-only root, and `novamesh doctor` must find nothing broken. Bases are not the ones
of the Dockerfile: Debian 12's own Python 3.11 stands for `python:3.11-slim-bookworm`, and with a
compiler and headers for `python:3.11-bookworm`. Needs root, mmdebstrap's packages from apt, some
10 GB below FOLDER, and minutes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.compose_file import ROOT, SERVICES, STAGES
from support.debian_packages import tool

FOLDER: Final = ROOT / "build" / "images"
SLIM: Final = ("ca-certificates", "netbase", "python-is-python3", "tzdata")
FULL: Final = (*SLIM, "build-essential", "libgmp-dev", "python3-dev", "python3-pip", "python3-venv")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TARGETS: Final = tuple(
    dict.fromkeys(each["build"]["target"] for each in SERVICES.values() if "build" in each)
)
ENTER: Final = """
set -e
mount --make-rprivate /
mount --bind {root} {root}
for each in proc dev sys; do mount --rbind /$each {root}/$each; done
{mounts}
exec chroot {root} "$@"
"""


class ImageError(RuntimeError):
    """An instruction cannot be done; the message says which and why."""


@dataclass
class Image:
    """A root and what its configuration says."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    workdir: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    build_env: dict[str, str] = field(default_factory=dict)  # ARG: for RUN alone

    def begin(self, root: Path) -> Image:
        """What begins from this one, with a root of its own."""
        _remove(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        _call(["cp", "--archive", "--reflink=auto", self.root, root])
        return Image(root, dict(self.env), self.workdir, self.user, list(self.command))

    def run(
        self,
        words: list[str],
        mounts: Mapping[Path, str],
        env: Mapping[str, str],
        writable: bool = True,
    ) -> str:
        """A command inside, as the image's user; what it says.

        Raises:
            ImageError: It failed.
        """
        lines = [] if writable else [f"mount -o remount,ro,bind {self.root}"]
        for source, target in mounts.items():
            place = self.root / target.removeprefix("/")
            if not place.exists():
                parent = place if source.is_dir() else place.parent
                parent.mkdir(parents=True, exist_ok=True)
                if not source.is_dir():
                    place.touch()
            lines.append(f"mount --bind {source} {place}")
        uid, _, gid = self.user.partition(":")
        told = {"HOME": "/root"} | self.env | env
        inside = ["env", "-i", "--chdir", self.workdir, *(f"{key}={told[key]}" for key in told)]
        inside += ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", *words]
        script = ENTER.format(root=self.root, mounts="\n".join(lines))
        return _call(["unshare", "--mount", "sh", "-c", script, "sh", *inside])


class Builder:
    """Makes images below one folder, each stage once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Image] = {}

    def make(self, name: str) -> Image:
        """The image of a stage.

        Raises:
            ImageError: An instruction of it, or of one that it is made from, cannot be done.
        """
        if name not in self._made:
            stage = STAGES[name]
            base = self.make(stage.base) if stage.base in STAGES else self._base(stage.base)
            image = base.begin(self._folder / "roots" / name)
            for verb, words in stage.steps:
                begun = time.monotonic()
                do = getattr(self, f"_{verb.lower()}", None)
                if do is None:
                    raise ImageError(f"no {verb} is known here")
                do(image, words)
                _say(f"{name:18} {verb:8} {time.monotonic() - begun:6.1f} s  {words[:60]}")
            told = {"env": image.env, "workdir": image.workdir, "user": image.user}
            image.root.with_name(f"{name}.json").write_text(json.dumps(told))
            self._made[name] = image
        return self._made[name]

    def _base(self, image: str) -> Image:
        """What stands for an image of somebody else; made once, and kept."""
        root = self._folder / "bases" / ("slim" if "-slim-" in image else "full")
        if not root.exists():
            packages = SLIM if "-slim-" in image else FULL
            unfinished = root.with_suffix(".new")
            _remove(unfinished)
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            program = tool("mmdebstrap")
            words = ["--variant=minbase", f"--include={','.join(packages)}", "bookworm", unfinished]
            # It mounts this machine's /dev and /sys inside: that must be gone whenever it is.
            alone = ["unshare", "--mount", "--propagation", "private"]
            _call([*alone, program.path, *words], program.environment())
            for mark in unfinished.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
                mark.unlink()  # Debian's own; the image's Python is nobody else's
            unfinished.rename(root)
        return Image(root)

    def _run(self, image: Image, words: str) -> None:
        mounts = {Path("/etc/resolv.conf"): "/etc/resolv.conf"}
        while found := re.match(r"--mount=(\S+)\s+", words):
            wish = dict(part.split("=", 1) for part in found[1].split(","))
            mounts[self._source(wish)] = wish["target"]
            words = words[found.end() :]
        settings, places = _pip_settings()
        mounts |= {place: str(place) for place in places}
        image.run(["sh", "-c", words], mounts, settings | image.build_env)

    def _source(self, wish: dict[str, str]) -> Path:
        """Where what a RUN wants mounted lies."""
        if wish["type"] == "cache":
            cache = self._folder / "cache" / wish["target"].strip("/").replace("/", "-")
            cache.mkdir(parents=True, exist_ok=True)
            return cache
        if wish["type"] != "bind":
            raise ImageError(f"no mount of type {wish['type']} is known")
        root = self.make(wish["from"]).root if "from" in wish else ROOT
        return root / wish["source"].removeprefix("/")

    def _copy(self, image: Image, words: str) -> None:
        *sources, target = words.split()
        place = image.root / os.path.join(image.workdir, target).removeprefix("/")
        if sources[0].startswith("--from="):
            root = self.make(sources.pop(0).removeprefix("--from=")).root
            (source,) = sources
            place.parent.mkdir(parents=True, exist_ok=True)
            _call(["cp", "--archive", "--reflink=auto", f"{root}{source}", place])
            return
        for name in sources:
            source, into = ROOT / name, place / name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, into, ignore=_ignored, dirs_exist_ok=True)
            else:
                shutil.copy(source, into)

    def _env(self, image: Image, words: str) -> None:
        for pair in words.split():
            key, _, value = pair.partition("=")
            image.env[key] = re.sub(r"\$(\w+)", lambda found: image.env[found[1]], value)

    def _arg(self, image: Image, words: str) -> None:
        key, _, value = words.partition("=")
        if given := os.environ.get(key, value):
            image.build_env[key] = given

    def _workdir(self, image: Image, words: str) -> None:
        image.workdir = words
        (image.root / words.removeprefix("/")).mkdir(parents=True, exist_ok=True)

    def _user(self, image: Image, words: str) -> None:
        image.user = words

    def _cmd(self, image: Image, words: str) -> None:
        image.command = json.loads(words)

    def _volume(self, image: Image, words: str) -> None:
        """Compose mounts it; here it only has to be there."""
        if not (image.root / words.removeprefix("/")).is_dir():
            raise ImageError(f"there is no folder {words} to be a volume")


def _ignored(folder: str, names: list[str]) -> set[str]:
    """What .dockerignore keeps out of the build, below any folder."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    anywhere = [each.removeprefix("**/") for each in patterns if each.startswith("**/")]
    return {name for name in names for each in anywhere if fnmatch.fnmatch(name, each)}


def _pip_settings() -> tuple[dict[str, str], list[Path]]:
    """What this machine tells its pip, as variables, and the files and folders that it names."""
    said = _call([sys.executable, "-m", "pip", "config", "list"])
    found = re.findall(r"^(global|:env:)\.([\w-]+)='(.*)'$", said, re.MULTILINE)
    told = {f"PIP_{key.upper().replace('-', '_')}": text for _, key, text in sorted(found)[::-1]}
    named = re.findall(r"(?:^|\s|file://)(/[^\s]+)", "\n".join(told.values()))
    # An index of files has its files beside it.
    whole = (path.parent if path.name == "simple" else path for path in map(Path, named))
    paths = dict.fromkeys(path for path in whole if path.exists())
    outer = [one for one in paths if not any(other in one.parents for other in paths)]
    return told, outer


def _remove(root: Path) -> None:
    """A root that is done again; never through a mount into what belongs to this machine."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if inside := [place for place in mounts if Path(place).is_relative_to(root)]:
        raise ImageError(f"unmount {', '.join(inside)} first")
    shutil.rmtree(root, ignore_errors=True)


def _call(command: list[str | Path], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[-3000:]
        raise ImageError(f"{' '.join(map(str, command[-4:]))} exits {done.returncode}: {said}")
    return done.stdout


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Make the targets, and run what each does by itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET")
    asked = parser.parse_args()
    builder = Builder(asked.folder.resolve())
    for name in asked.targets:
        image = builder.make(name)
        said = image.run(image.command, {}, {}, writable=False)
        image.run(["novamesh", "doctor"], {}, {}, writable=False)
        size = _call(["du", "--summarize", "--block-size=1M", image.root]).split()[0]
        _say(f"{name:18} {size} MB; {' '.join(image.command)}: {said.strip().splitlines()[0]}")


if __name__ == "__main__":
    main()
