# The image for machines that can pull: built and run on official images. deploy/scratch-image makes a smaller one where
# nothing can be pulled. Both are used alike.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked && strip target/release/convoy && mkdir -p /empty

FROM debian:bookworm-slim
# For downloading data over HTTPS nothing more is needed: the program brings its own certificates.
COPY --from=build /source/target/release/convoy /usr/bin/convoy
COPY --from=build --chown=65532:65532 /empty /runs
COPY --from=build /empty /data
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/bin/convoy"]
CMD ["--help"]
