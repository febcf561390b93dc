#!/usr/bin/env python3
"""Writes THIRD_PARTY_LICENSES: the licence texts of every crate in the danlu binary.

    python3 .ci/third_party.py            # writes the file
    python3 .ci/third_party.py --check    # fails if the file is not current, or a licence or source is not allowed

The texts come from the crates' sources, which `cargo fetch` downloads. Allowed licences are those of deny.toml.
Needs Python 3.9, nothing else.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUT = REPOSITORY / "THIRD_PARTY_LICENSES"
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
TARGET = "x86_64-unknown-linux-gnu"
NAMES = re.compile(r"^(licen[cs]e|copying|notice|unlicense|copyright)", re.I)


def shipped():
    """Returns the crates of other authors that are linked into the binary, by name and version."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]
    metadata = json.loads(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    todo = [package["id"] for package in metadata["packages"] if package["name"] == "danlu"]
    seen = set(todo)
    while todo:
        for dependency in nodes[todo.pop()]["deps"]:
            # Build scripts and tests are not part of the binary.
            is_linked = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if is_linked and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                todo.append(dependency["pkg"])
    found = [packages[id] for id in seen if packages[id]["source"]]
    return sorted(found, key=lambda package: (package["name"], package["version"]))


def allowed():
    """Returns the allowed licences of deny.toml."""
    text = (REPOSITORY / "deny.toml").read_text()
    return set(re.findall(r'"([^"]+)"', re.search(r"^allow = \[(.*?)\]", text, re.M | re.S)[1]))


def is_allowed(expression, licences):
    """Returns whether `licences` satisfies the SPDX expression. `/` is an old spelling of OR."""
    expression = re.sub(r"\s*/\s*", " OR ", expression)
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)
    words = {"OR": "or", "AND": "and", "(": "(", ")": ")"}
    code, skip = [], False
    for token in tokens:
        if skip:  # the word after WITH names an exception, which only adds permissions
            skip = False
        elif token == "WITH":
            skip = True
        else:
            code.append(words.get(token) or str(token in licences))
    return eval(" ".join(code), {"__builtins__": {}})


def texts(package):
    """Returns the licence files of a crate. If MIT is one of the choices and has a file, only the MIT text is returned."""
    folder = Path(package["manifest_path"]).parent
    files = sorted(file for file in folder.iterdir() if file.is_file() and NAMES.match(file.name))
    mit = [file for file in files if re.search(r"mit", file.name, re.I)]
    choices = re.split(r"\s+OR\s+|\s*/\s*", package["license"] or "")
    if "MIT" in choices and mit:
        files = mit + [file for file in files if file.name.lower().startswith("notice")]
    return [file.read_text(encoding="utf-8", errors="replace").strip() for file in files]


def render(packages):
    """Returns the content of THIRD_PARTY_LICENSES, in which crates with the same text share one copy."""
    out = [
        "danlu links the crates below. `python3 .ci/third_party.py` writes this file from their sources.",
        "Where a crate offers a choice that includes MIT, danlu uses it under MIT.",
        "",
    ]
    groups = {}
    for package in packages:
        key = "\n\n".join(texts(package)) or f"The crate contains no licence text. Its licence: {package['license']}."
        groups.setdefault(key, []).append(package)
    for text, crates in groups.items():
        out.append("=" * 80)
        for crate in crates:
            out.append(f"{crate['name']} {crate['version']}: {crate['license']} {crate['repository'] or ''}".rstrip())
        out += ["-" * 80, *(line.rstrip() for line in text.splitlines()), ""]
    return "\n".join(out)


def main():
    packages, licences = shipped(), allowed()
    faults = [f"{p['name']}: the source is {p['source']}" for p in packages if p["source"] != CRATES_IO]
    for package in packages:
        if not package["license"] or not is_allowed(package["license"], licences):
            faults.append(f"{package['name']}: deny.toml does not allow the licence {package['license']}")
    text = render(packages)
    if "--check" not in sys.argv:
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        faults.append("THIRD_PARTY_LICENSES is not current: run `python3 .ci/third_party.py`")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(packages)} crates, {len(text)} bytes")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
