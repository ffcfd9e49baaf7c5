"""Services of compose.yaml without a container engine: each in namespaces, with what compose says.

A service has an address and names of its own, a root that cannot be written, the mounts, secrets
and variables that compose.yaml gives it, the user of its image and no capability. What is missing
are the images: the root is this machine's, and so are the programs. Where NOVAMESH_TEST_IMAGES
names the folder that `support.images` filled, services of ours run in those instead. Needs root.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final

from support.compose_file import DOCKERFILE, ROOT, SERVICES, fill_in, secret_files
from support.network_beds import Host, Internet

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
IMAGES: Final = os.environ.get("NOVAMESH_TEST_IMAGES", "")
# Everything is on a tmpfs of this one namespace, and gone with it. /root may be where Python is.
ENTER: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs {root}
mkdir {root}/new {root}/work {root}/top
mount -t overlay overlay -o lowerdir={lower},upperdir={root}/new,workdir={root}/work {root}/top
{prepare}
mount --rbind /proc {root}/top/proc
mount --rbind /dev {root}/top/dev
mount --bind {hosts} {root}/top/etc/hosts
{mounts}
mount -o remount,ro {root}/top
exec chroot {root}/top env --chdir {workdir} setpriv --reuid {uid} --regid {gid} --clear-groups \\
  --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""
# This machine's root has what no image has, and lacks the user.
PREPARE: Final = """
chmod 755 {root}/top/root
rm -rf {root}/top/var/lib/novamesh {root}/top/run/* {root}/top/var/run {root}/top/mosquitto
echo "service:x:{uid}:{gid}::/:/bin/sh" >> {root}/top/etc/passwd
"""


@dataclass
class Container:
    """A running service."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        """As `docker compose stop`: SIGTERM, and its exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(60)


class Containers:
    """Use as `with Containers(net, folder, secrets, names) as containers`."""

    def __init__(self, net: Internet, folder: Path, secrets: Path, names: tuple[str, ...]) -> None:
        self._folder, self._secrets = folder, secrets
        self._hosts: dict[str, Host] = {name: net.add_host(name) for name in names}
        self._running: dict[str, Container] = {}
        lines = ["127.0.0.1 localhost", *(f"{h.address} {n}" for n, h in self._hosts.items())]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "root").mkdir()

    def __enter__(self) -> Containers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for container in self._running.values():
            container.kill()

    def up(
        self,
        name: str,
        given: Mapping[str, str] = NOTHING,
        command: list[str | Path] | None = None,
        more: Mapping[str, str] = NOTHING,
    ) -> Container:
        """Start a service; `given` is what is set where compose is typed.

        Args:
            name: The service.
            given: Variables for compose's own ${…}.
            command: Where the image has one of its own.
            more: What a program of this machine needs in its environment.
        """
        words = command or SERVICES[name]["command"]
        log = self._folder / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                self._enter(name, words, given), env=self._env(name, given) | more, stdout=file,
                stderr=file, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._running[name] = Container(name, process, log)
        return self._running[name]

    def run(self, name: str, *words: str | Path, given: Mapping[str, str] = NOTHING) -> str:
        """As `docker compose exec` and `run`: what a command of a service prints."""
        done = subprocess.run(
            self._enter(name, list(words), given), env=self._env(name, given),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
        return done.stdout

    def hang_up(self, name: str) -> None:
        """As `docker compose kill --signal HUP`."""
        self._running[name].process.send_signal(signal.SIGHUP)

    def healthy(self, name: str) -> bool:
        """What its health check says."""
        assert self._running[name].process.poll() is None, self._running[name].log.read_text()
        return self.succeeds(name, *SERVICES[name]["healthcheck"]["test"][1:])

    def succeeds(self, name: str, *words: str | Path) -> bool:
        """Whether a command of a service exits with 0."""
        try:
            self.run(name, *words)
        except AssertionError:
            return False
        return True

    def until(self, condition: Callable[[], object], seconds: float = 90.0) -> None:
        """Wait; an AssertionError tells what every service said."""
        end_s = time.monotonic() + seconds
        while not condition():
            logs = {name: each.log.read_text()[-800:] for name, each in self._running.items()}
            assert time.monotonic() < end_s, logs
            time.sleep(0.2)

    def _env(self, name: str, given: Mapping[str, str]) -> dict[str, str]:
        """The image's variables and those of the service; an empty one is as good as none."""
        own = SERVICES[name].get("environment", {})
        filled_in = {key: fill_in(own[key], given) for key in own}
        if image := image_of(name):
            return json.loads(image.with_suffix(".json").read_text())["env"] | filled_in
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return dict(re.findall(r"\b(NOVAMESH_HOME|HOME)=(\S+)", DOCKERFILE)) | path | filled_in

    def _enter(
        self, name: str, words: list[str | Path], given: Mapping[str, str]
    ) -> list[str | Path]:
        service, top = SERVICES[name], self._folder / "root" / "top"
        image, workdir, user = image_of(name), "/", service.get("user", "10001:10001")
        if image is not None:
            told = json.loads(image.with_suffix(".json").read_text())
            workdir, user = told["workdir"], service.get("user", told["user"])
        uid, gid = user.split(":")
        lines = []
        for each in service["tmpfs"]:
            place, _, options = each.partition(":")
            options = f"{options or 'mode=1777'},noexec,nosuid,nodev"  # as an engine mounts one
            lines.append(f"mkdir -p {top}{place} && mount -t tmpfs -o {options} tmpfs {top}{place}")
        if image is None and any(
            ROOT.is_relative_to(each.partition(":")[0]) for each in service["tmpfs"]
        ):
            # This checkout, with the software in it, lies where the service has a place of its own.
            lines.append(f"mkdir -p {top}{ROOT} && mount --bind {ROOT} {top}{ROOT}")
        for source, target in self._mounts(name, int(uid), given):
            kind = f"mkdir -p {top}{target}"
            if not source.is_dir():
                kind = f"mkdir -p {top}{Path(target).parent} && touch {top}{target}"
            lines.append(f"{kind} && mount --bind {source} {top}{target}")
        root = self._folder / "root"
        prepare = PREPARE.format(root=root, uid=uid, gid=gid) if image is None else ""
        script = ENTER.format(
            root=root, hosts=self._folder / "hosts", mounts="\n".join(lines), uid=uid, gid=gid,
            lower=image or "/", prepare=prepare, workdir=workdir,
        )  # fmt: skip
        inside = [*self._hosts[name].prefix, "unshare", "--mount", "sh", "-c", script, "sh"]
        return [*inside, *words]

    def _mounts(self, name: str, uid: int, given: Mapping[str, str]) -> list[tuple[Path, str]]:
        """Each mount's source on this machine and its place in the service."""
        found = []
        for mount in SERVICES[name].get("volumes", ()):
            source, target = mount.split(":")[:2]
            path = ROOT / source if source.startswith("./") else self._folder / source
            if not path.exists():
                path.mkdir(mode=0o700)
                image = image_of(name)
                # An engine makes a new volume as the image has the folder.
                owner = (image / target.removeprefix("/")).stat().st_uid if image else uid
                os.chown(path, owner, owner)
            found.append((path, target))
        files = secret_files(self._secrets, given)
        for secret in SERVICES[name].get("secrets", ()):
            if isinstance(secret, str):
                found.append((files[secret], f"/run/secrets/{secret}"))
            else:
                found.append((files[secret["source"]], secret["target"]))
        return found


def image_of(name: str) -> Path | None:
    """The root that was made for a service of ours; None where this machine's will have to do."""
    if not IMAGES or "build" not in SERVICES[name]:
        return None
    return Path(IMAGES) / "roots" / SERVICES[name]["build"]["target"]
