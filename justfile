# Each recipe is a list of shell commands and also works without `just`.

# Runs the checks of CI.
check:
    bash .ci/run

# Runs the whole chain on the embedded base, in about a minute.
demo *args:
    cargo run --release -- demo {{args}}

# Runs all tests, or those with a word in their name.
test *args:
    cargo test --workspace {{args}}

# Compiles the CUDA kernels for every architecture, without a GPU. NVRTC comes from PyPI. Commit the output.
kernels *args:
    python3 crates/kernels/cuda/build.py {{args}}

# Runs the tests that need an NVIDIA GPU, and fails without one.
test-gpu *args:
    DANLU_REQUIRE_GPU=1 cargo test -p danlu-kernels --lib cuda {{args}}

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
fuzz target seconds="180":
    mkdir -p fuzz/corpus/{{target}} fuzz/seeds/{{target}}
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} corpus/{{target}} seeds/{{target}} -- -max_total_time={{seconds}}

# Rewrites the expected values from pinned PyTorch, transformers and PEFT (see reference/README.md).
reference:
    python3 -m venv reference/.venv
    reference/.venv/bin/pip install -r reference/requirements.txt
    reference/.venv/bin/python reference/training.py
