# The image for machines that can pull: it is built from official images. deploy/scratch-image builds a smaller one
# without pulling. Both are used in the same way.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked && strip target/release/convoy && mkdir -p /empty

FROM debian:bookworm-slim
# Downloads over HTTPS need no package: the program includes the root certificates.
COPY --from=build /source/target/release/convoy /usr/bin/convoy
COPY --from=build --chown=65532:65532 /empty /runs
COPY --from=build /empty /data
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/bin/convoy"]
CMD ["--help"]
