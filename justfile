# Each recipe is a list of shell commands and also works without `just`.

# Runs the checks of CI.
check:
    bash .ci/run

# Runs the whole chain on the embedded base, in about a minute.
demo *args:
    cargo run --release -- demo {{args}}

# Builds the wheel into `dist/`: a manylinux_2_28 binary for `pip install`. The tools come from PyPI.
wheel *args:
    python3 .ci/release.py --wheel-only {{args}}

# Builds a release into `dist/`: wheel, tar archive, SBOM and checksums.
release *args:
    python3 .ci/release.py {{args}}

# Runs all tests, or those with a word in their name.
test *args:
    cargo test --workspace {{args}}

# Compiles the CUDA kernels for every architecture, without a GPU. NVRTC comes from PyPI. Commit the output.
kernels *args:
    python3 crates/kernels/cuda/build.py {{args}}

# Runs the tests that need an NVIDIA GPU, and fails without one.
test-gpu *args:
    DANLU_REQUIRE_GPU=1 cargo test -p danlu-kernels --lib cuda {{args}} -- --test-threads=1
    DANLU_REQUIRE_GPU=1 cargo test -p danlu-train --test gpu --test golden --test families --test embedded --test dora {{args}} -- --test-threads=1

# Checks the memory accesses of the kernels on a GPU. A kernel is searched in every module, and `compute-sanitizer`
# would report each module without the kernel as an error of the driver.
sanitize-gpu tool="memcheck" *args="cuda::tests":
    DANLU_REQUIRE_GPU=1 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="compute-sanitizer --tool {{tool}} --report-api-errors no" cargo test -p danlu-kernels --lib -- {{args}} --test-threads=1

# Runs the kernels of compute capability 7.5 on a newer GPU, which compiles their PTX.
test-gpu-75:
    python3 crates/kernels/cuda/build.py --ptx target/cuda/ptx75
    DANLU_TEST_PTX=$PWD/target/cuda/ptx75 DANLU_REQUIRE_GPU=1 cargo test -p danlu-kernels --lib cuda::tests -- --test-threads=1

# Cross-compiles the kernels for 64-bit ARM, and runs their tests under QEMU. Needs Debian's `gcc-aarch64-linux-gnu` and
# `qemu-user-static`, and `rustup target add aarch64-unknown-linux-gnu`. Takes about ten minutes on two cores.
test-aarch64 *args:
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu" \
        cargo test -p danlu-kernels --lib --target aarch64-unknown-linux-gnu {{args}} -- --skip peak::tests

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Builds the API documentation, with private items.
docs:
    cargo doc --workspace --no-deps --document-private-items

# Measures matrix products against this machine's measured peak.
bench:
    cargo bench -p danlu-kernels

# Runs a fuzz target from its seeds: `just fuzz data_reader 180`. Needs `cargo install cargo-fuzz`.
# The targets are safe Rust except for memory mapping, so there is no sanitizer by default.
# `just fuzz data_reader 180 address` adds AddressSanitizer.
fuzz target seconds="180" sanitizer="none":
    mkdir -p fuzz/corpus/{{target}} fuzz/seeds/{{target}}
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer {{sanitizer}} --features {{target}} {{target}} corpus/{{target}} seeds/{{target}} -- -max_total_time={{seconds}}

# Runs the scalar kernels in Miri, which detects undefined behaviour. Needs `rustup +nightly component add miri`.
miri *args:
    MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p danlu-kernels --lib reference {{args}}

# Runs random commands with kills and faults against the test server: `just soak 3600`. Needs Python 3.9.
soak seconds="3600":
    cargo build -p danlu -p danlu-hub-test-server
    python3 reference/soak.py --danlu target/debug/danlu --server target/debug/hub-test-server --seconds {{seconds}}

# Checks licences, duplicates, sources and advisories of the dependencies. Needs `cargo install cargo-deny`.
deny:
    cargo deny --locked check

# Writes THIRD_PARTY_LICENSES again, after a change of the dependencies.
licenses:
    python3 .ci/third_party.py

# Rewrites the expected values from pinned PyTorch, transformers and PEFT (see reference/README.md).
reference:
    python3 -m venv reference/.venv
    reference/.venv/bin/pip install -r reference/requirements.txt
    reference/.venv/bin/python reference/training.py
