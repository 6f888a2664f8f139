//! Compiles `hailmary/v1/bus.proto` without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "hailmary/v1/bus.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["."])?;
    prost_build::Config::new()
        // Encodes attributes in one order, so equal events are equal bytes.
        .btree_map(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
