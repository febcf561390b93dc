# Every line also works without `just`: copy it into a shell.

# What CI runs.
check:
    bash .ci/run

# The whole chain on the embedded base, about a minute.
demo *args:
    cargo run --release -- demo {{args}}

# All tests, or those whose name contains a word.
test *args:
    cargo test --workspace {{args}}

# Compile the CUDA kernels for every architecture, without a GPU; NVRTC comes from PyPI. Commit what it writes.
kernels *args:
    python3 crates/kernels/cuda/build.py {{args}}

# The tests that need an NVIDIA GPU; fails where there is none.
test-gpu *args:
    DANLU_REQUIRE_GPU=1 cargo test -p danlu-kernels --lib cuda {{args}}

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets -- -D warnings

# API documentation, private items included.
docs:
    cargo doc --workspace --no-deps --document-private-items

# Products against this machine's measured peak.
bench:
    cargo bench -p danlu-kernels

# A fuzz target for some minutes, from sound inputs where there are: `just fuzz data_reader 180`. Needs `cargo install cargo-fuzz`.
fuzz target seconds="180":
    mkdir -p fuzz/corpus/{{target}} fuzz/seeds/{{target}}
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} corpus/{{target}} seeds/{{target}} -- -max_total_time={{seconds}}

# Rewrite the expected values from pinned PyTorch, transformers and PEFT (see reference/README.md).
reference:
    python3 -m venv reference/.venv
    reference/.venv/bin/pip install -r reference/requirements.txt
    reference/.venv/bin/python reference/training.py
