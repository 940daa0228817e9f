//! Compiles the .proto file with protox, so that protoc need not be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/convoy/v1/convoy.proto";
    println!("cargo::rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    // With `Bytes`, a tensor stays a slice of the receive buffer, without another copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
