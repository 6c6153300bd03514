# syntax=docker/dockerfile:1
# One image with all roles of fusefs.
#   docker build -t REGISTRY/fusefs:0.1.0 .        docker buildx build --platform linux/amd64,linux/arm64 ...
# Arguments: RUST (the version in rust-toolchain.toml), DEBIAN (release of both stages).
ARG RUST=1.95.0
ARG DEBIAN=trixie

FROM rust:${RUST}-slim-${DEBIAN} AS build
ARG RUST
# The image's toolchain is the one that rust-toolchain.toml names; without this rustup would look for further components.
ENV RUSTUP_TOOLCHAIN=${RUST}
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches keep crates and objects between builds; the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked -p fusefs-cli \
 && install -D -m 0755 target/release/fusefs /out/fusefs

FROM debian:${DEBIAN}-slim
# fuse3: fusermount3 for mounts by ordinary users; ca-certificates: TLS to the object store.
RUN apt-get update \
 && apt-get install -y --no-install-recommends fuse3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 65532 fusefs \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin fusefs \
 && ln -s /usr/local/bin/fusefs /sbin/mount.fusefs
COPY --from=build /out/fusefs /usr/local/bin/fusefs
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/fusefs"]
CMD ["--help"]
