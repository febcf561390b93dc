#!/usr/bin/env python3
"""Builds a release: the wheel, a tar archive for Linux, an SBOM (CycloneDX) and checksums.

    python3 .ci/release.py                                       # into dist/, for x86-64
    python3 .ci/release.py --target aarch64-unknown-linux-gnu    # needs `rustup target add` of that target
    python3 .ci/release.py --wheel-only --out DIR                # the wheel alone, as CI does

The tools of wheel-requirements.txt are installed into a temporary environment. Needs Rust 1.95 and Python 3.9.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# The exit code if the tools cannot be installed.
NO_TOOLS = 3
TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]
DOCUMENTS = ["README.md", "README.zh.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "THIRD_PARTY_LICENSES"]


def build_wheel(target, out):
    """Builds the wheel. maturin rejects a binary that needs a newer glibc than 2.28."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        requirements = REPOSITORY / ".ci/wheel-requirements.txt"
        pip = [f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
        if subprocess.run(pip).returncode:
            print("the tools of wheel-requirements.txt cannot be installed here", file=sys.stderr)
            sys.exit(NO_TOOLS)
        command = [f"{folder}/bin/maturin", "build", "--release", "--zig", "--target", target]
        command += ["--compatibility", "manylinux_2_28", "--out", str(out)]
        path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "PATH": path}, check=True)
    [wheel] = out.glob(f"danlu-*{target.split('-')[0]}.whl")
    return wheel


def file_of(wheel, end):
    """Returns the file of the wheel whose name ends in `end`. The tar archive thus contains the program of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(end)]
        return archive.read(name)


def commit_time():
    """Returns the time of the commit. Files get this time, so that two builds of one commit give the same archive."""
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True).stdout)


def write_archive(path, folder, binary):
    """Writes the binary and the documents to a tar archive, with fixed owners and times."""
    contents = [("danlu", binary, 0o755)]
    contents += [(name, (REPOSITORY / name).read_bytes(), 0o644) for name in DOCUMENTS]
    with tarfile.open(path, "w:xz", format=tarfile.PAX_FORMAT) as archive:
        for name, data, mode in contents:
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode, member.mtime = len(data), mode, commit_time()
            archive.addfile(member, io.BytesIO(data))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist")
    parser.add_argument("--wheel-only", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(args.target, args.out)
    if args.wheel_only:
        print(wheel)
        return
    version = wheel.name.split("-")[1]
    name = f"danlu-{version}-{args.target.removesuffix('-unknown-linux-gnu')}-linux"
    write_archive(args.out / f"{name}.tar.xz", name, file_of(wheel, ".data/scripts/danlu"))
    (args.out / f"{name}.cdx.json").write_bytes(file_of(wheel, "/sboms/danlu.cyclonedx.json"))
    files = sorted(file for file in args.out.iterdir() if file.is_file() and file.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (args.out / "SHA256SUMS").write_text("".join(sums))
    for file in files:
        print(f"{file.stat().st_size:>12,}  {file}")


if __name__ == "__main__":
    main()
