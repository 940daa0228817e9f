//! Compiles the .proto file with protox, so that no protoc need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/convoy/v1/convoy.proto";
    println!("cargo::rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    // Tensors' bytes stay shared slices of the receive buffer instead of being copied once more.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
