# danlu for CPUs and NVIDIA GPUs in one image. The driver comes from the host (`docker run --gpus all`).
#
#   docker build -t danlu .
#   docker run --rm -it -v "$PWD:/work" danlu demo
#   docker run --rm -p 8000:8000 -e DANLU_API_KEY=... -v "$PWD/my-model:/model" danlu     # serves /model

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p danlu && strip target/release/danlu

FROM python:3.13-slim-bookworm AS cublas
RUN pip install --no-cache-dir --no-deps --target /cublas "nvidia-cublas-cu12>=12.4"

FROM debian:bookworm-slim
# Only cuBLASLt is opened; the wheel's other libraries stay out of the image.
COPY --from=cublas /cublas/nvidia/cublas/lib/libcublasLt.so.12 /opt/cublas/
COPY --from=build /src/target/release/danlu /usr/local/bin/
COPY --from=build /src/LICENSE-MIT /src/LICENSE-APACHE /src/THIRD_PARTY_LICENSES /usr/share/doc/danlu/
ENV DANLU_CUDA_LIBRARY_PATH=/opt/cublas \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LANG=C.UTF-8
RUN useradd --create-home --uid 10001 danlu && install -d -o danlu /work
USER danlu
WORKDIR /work
ENTRYPOINT ["danlu"]
CMD ["serve", "/model", "--host", "0.0.0.0"]
