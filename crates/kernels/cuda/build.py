#!/usr/bin/env python3
"""Compiles every kernel for every architecture, without a GPU and without a CUDA toolkit.

    python3 crates/kernels/cuda/build.py            write kernels.pack and resources.txt
    python3 crates/kernels/cuda/build.py --check    compare with the committed ones
    python3 crates/kernels/cuda/build.py --arch sm_90 attention.cu    compile only, and print the resources of each kernel

NVRTC (`nvidia-cuda-nvrtc-cu12`) is installed from PyPI into a virtual environment under target/cuda.
"""

import argparse
import ctypes
import hashlib
import re
import struct
import subprocess
import sys
import venv
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[2] / "target" / "cuda"
PACK = HERE / "kernels.pack"
RESOURCES = HERE / "resources.txt"

# NVRTC 12.9 is the last one of CUDA 12, and it compiles for all of these architectures.
# Drivers for CUDA 12.9 or later load its cubins.
CUBIN_NVRTC = "12.9.86"
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120"]
# Drivers reject PTX newer than themselves, so an old NVRTC writes the PTX for devices without a cubin.
PTX_NVRTC = "12.1.105"
PTX_ARCHITECTURE = "compute_80"
# Tests run this PTX on newer devices, which reject the sm_75 cubins.
TEST_PTX_ARCHITECTURE = "compute_75"

OPTIONS = ["--std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v"]


class Nvrtc:
    """The compiler library."""

    def __init__(self, path):
        ctypes.CDLL(str(next(path.parent.glob("libnvrtc-builtins.so*"))), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(path))

    def call(self, name, *arguments):
        result = getattr(self.lib, name)(*arguments)
        if result != 0 and name != "nvrtcCompileProgram":
            self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p
            sys.exit(f"{name}: {self.lib.nvrtcGetErrorString(result).decode()}")
        return result

    def read(self, program, what):
        """Returns the result of `nvrtcGet<what>`."""
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, data)
        return data.raw

    def compile(self, source, headers, architecture):
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*[header.name.encode() for header in headers])
        texts = (ctypes.c_char_p * len(headers))(*[header.read_bytes() for header in headers])
        create = (source.read_bytes(), source.name.encode(), len(headers), texts, names)
        self.call("nvrtcCreateProgram", ctypes.byref(program), *create)
        options = [f"--gpu-architecture={architecture}", *OPTIONS]
        flags = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        failed = self.call("nvrtcCompileProgram", program, len(options), flags)
        log = self.read(program, "ProgramLog").rstrip(b"\0").decode()
        if failed:
            sys.exit(f"{source.name} does not compile for {architecture}:\n{log}")
        image = self.read(program, "PTX" if architecture.startswith("compute") else "CUBIN")
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return image, log


def library(version):
    """Returns the path of libnvrtc of this version. Installs it if it is missing, and returns None if that fails."""
    folder = TARGET / f"nvrtc-{version}"
    found = lambda: next(folder.glob("lib/python*/site-packages/nvidia/*/lib/libnvrtc.so.*"), None)
    if found() is None:
        venv.create(folder, with_pip=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        result = subprocess.run([*pip, f"nvidia-cuda-nvrtc-cu12=={version}"])
        if result.returncode != 0:
            return None
    return found()


def headers():
    return sorted(HERE.glob("*.cuh"))


def digest(*parts):
    state = hashlib.sha256()
    for part in parts:
        state.update(part if isinstance(part, bytes) else str(part).encode())
        state.update(b"\0")
    return state.hexdigest()


def compile_one(task):
    """Compiles one file for one architecture, or reads the result from the cache."""
    source, architecture, path = task
    texts = [header.read_bytes() for header in headers()]
    key = digest(source.read_bytes(), *texts, architecture, *OPTIONS, path.name, path.parents[2].name, path)
    cached = TARGET / "cache" / key
    if not cached.exists():
        image, log = Nvrtc(path).compile(source, headers(), architecture)
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(".partial")
        partial.write_bytes(struct.pack("<I", len(image)) + image + log.encode())
        partial.rename(cached)
    data = cached.read_bytes()
    (length,) = struct.unpack_from("<I", data)
    return source.stem, architecture, data[4 : 4 + length], data[4 + length :].decode()


ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(.*)")


def resources(stem, architecture, log):
    """Returns a line for each kernel (registers, shared memory, stack, spills) and each warning in the assembler's log."""
    lines, entry, frame = [], None, None
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry = match[1]
        elif match := FRAME.search(line):
            frame = match
        elif entry and (match := USED.search(line)):
            shared = re.search(r"(\d+) bytes smem", match[2])
            spilled = int(frame[2]) + int(frame[3])
            used = f"{match[1]} registers, {shared[1] if shared else 0} shared, {frame[1]} stack, {spilled} spilled"
            lines.append(f"{stem}.cu {entry} {architecture}: {used}")
            entry = None
        elif re.search(r"C75\d\d|serializ", line):
            lines.append(f"{stem}.cu {architecture}: {line.strip()}")
        elif "warning" in line:
            lines.append(f"{stem}.cu {architecture}: {line.strip()}")
    return lines


def source_hash(files):
    """Returns the FNV-1a hash of the names and the bytes of the files. A test in `cuda::image` computes it too."""
    state = 0xCBF29CE484222325
    for file in files:
        for byte in file.name.encode() + b"\0" + file.read_bytes() + b"\0":
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return state


def pack(images, sources):
    """Returns the bytes of kernels.pack: a header, a table of images, and the compressed images. `cuda::image` reads them."""
    bodies = [zlib.compress(image, 9)[2:-4] for _, _, image, _ in images]
    head = b"DANLUCU1" + struct.pack("<QI", source_hash([*headers(), *sources]), len(images))
    offset = len(head) + 40 * len(images)
    for (stem, architecture, image, _), body in zip(images, bodies):
        head += struct.pack("<20s8sIII", stem.encode(), architecture.removeprefix("compute_").encode(), offset, len(body), len(image))
        offset += len(body)
    return head + b"".join(bodies)


def is_of(line, compiled):
    """Returns whether a line of resources.txt belongs to a pair of file and architecture in `compiled`."""
    words = line.split(":")[0].split()
    return (words[0], words[-1]) in compiled


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="compile only these files; write nothing")
    parser.add_argument("--arch", action="append", help="compile only for this architecture (repeatable), for a look or for --check")
    parser.add_argument("--nvrtc", type=Path, help="the libnvrtc.so that compiles cubins")
    parser.add_argument("--ptx", type=Path, metavar="FOLDER", help="write PTX for compute capability 7.5 to this folder, for tests on newer devices")
    parser.add_argument("--check", action="store_true", help="compare with the committed files, for the chosen files and architectures")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()

    sources = sorted(HERE.glob("*.cu"))
    chosen = [source for source in sources if not arguments.files or source.name in {Path(f).name for f in arguments.files}]
    partial = bool(arguments.files or arguments.arch or arguments.ptx)
    cubin = arguments.nvrtc or library(CUBIN_NVRTC)
    ptx = None if partial else library(PTX_NVRTC)
    if cubin is None or not (partial or ptx):
        # If PyPI cannot be reached, the kernels cannot be checked. --check does not report this as a failure.
        print("skipped: nvidia-cuda-nvrtc-cu12 cannot be installed here, so no kernel was compiled")
        sys.exit(0 if arguments.check else 1)

    if arguments.ptx:
        arguments.ptx.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(arguments.jobs) as pool:
            for stem, _, image, _ in pool.map(compile_one, [(source, TEST_PTX_ARCHITECTURE, cubin) for source in chosen]):
                (arguments.ptx / f"{stem}.ptx").write_bytes(image)
        return

    # Only files that use the special instructions of sm_90a are compiled for it. Others use their sm_90 cubin.
    special = lambda source: b"__CUDA_ARCH_FEAT_SM90_ALL" in source.read_bytes()
    wanted = lambda source, arch: arch in (arguments.arch or ARCHITECTURES) and (special(source) or not arch.endswith("a"))
    tasks = [(source, arch, cubin) for source in chosen for arch in ARCHITECTURES if wanted(source, arch)]
    if not partial:
        tasks += [(source, PTX_ARCHITECTURE, ptx) for source in sources]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        images = list(pool.map(compile_one, tasks))
    lines = [line for stem, arch, _, log in images for line in resources(stem, arch, log)]
    if partial and not arguments.check:
        print("\n".join(lines))
        return
    if not arguments.check:
        text, packed = "\n".join(lines) + "\n", pack(images, sources)
        RESOURCES.write_text(text)
        PACK.write_bytes(packed)
        print(f"{len(lines)} kernels, {sum(len(i[2]) for i in images)} bytes, {len(packed)} packed")
        return
    compiled = {(source.name, architecture) for source, architecture, _ in tasks}
    committed = [line for line in RESOURCES.read_text().splitlines() if is_of(line, compiled)]
    differences = [f"- {line}" for line in committed if line not in lines]
    differences += [f"+ {line}" for line in lines if line not in committed]
    if differences:
        print("\n".join(differences))
        sys.exit("cannot accept the kernels: their resources differ from resources.txt\nhint: run `just kernels` and review the difference")
    if struct.unpack_from("<Q", PACK.read_bytes(), 8) != (source_hash([*headers(), *sources]),):
        sys.exit("cannot accept kernels.pack: it is older than the sources\nhint: run `just kernels`")
    print(f"{len(lines)} kernels as in resources.txt")


if __name__ == "__main__":
    main()
