//! Trained networks as ONNX files, which other programs run. A file takes images as bytes, as data sets have them, and gives logits.
//!
//! Not here: reading ONNX files, and writing the file to a disk.
#![forbid(unsafe_code)]

mod graph;
mod messages;

use convoy_common::model::Network;
use convoy_common::parameters::{Tensors, sha256};
use messages::{Model, OperatorSet, Property};
use prost::Message;

/// Version of the file format: 8 goes with operator set 17.
const IR_VERSION: i64 = 8;
/// Version of the operators. Later ones change nothing that is used here, and older runtimes refuse them.
const OPERATOR_SET: i64 = 17;
/// Messages of protocol buffers are smaller than this.
const FILE_BYTES_MAX: usize = (1 << 31) - (1 << 20);

/// The name of the input: bytes (image, channel, row, column).
pub const IMAGES: &str = "images";
/// The name of the output: floats (image, class).
pub const LOGITS: &str = "logits";

/// Why a network can't be an ONNX file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum OnnxError {
    /// It is too large.
    #[error("the file would have at least {bytes} bytes; an ONNX file in one piece has at most {FILE_BYTES_MAX}")]
    TooLarge { bytes: usize },
    /// A parameter is missing.
    #[error("the weights have no tensor \"{name}\"")]
    Missing { name: String },
}

/// The file of a network with these weights.
///
/// # Errors
/// When a weight is missing, or the file would be too large.
pub fn file(network: &Network, weights: &Tensors) -> Result<Vec<u8>, OnnxError> {
    let bytes = 4 * weights.values().map(|tensor| tensor.len()).sum::<usize>();
    if bytes > FILE_BYTES_MAX {
        return Err(OnnxError::TooLarge { bytes });
    }
    let property = |key: &str, value: String| Property { key: key.to_owned(), value };
    let model = Model {
        ir_version: IR_VERSION,
        operator_sets: vec![OperatorSet { domain: String::new(), version: OPERATOR_SET }],
        producer_name: "convoy".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph::graph(network, weights)?),
        properties: vec![property("model", network.name.clone()), property("weights_sha256", sha256(weights))],
    };
    let bytes = model.encoded_len();
    if bytes > FILE_BYTES_MAX {
        return Err(OnnxError::TooLarge { bytes });
    }
    Ok(model.encode_to_vec())
}

/// Whether a file that begins with these bytes was written by this program, in any version of the format.
pub fn is_ours(beginning: &[u8]) -> bool {
    matches!(beginning, [0x08, _, rest @ ..] if rest.starts_with(b"\x12\x06convoy"))
}

/// As many bytes decide [`is_ours`].
pub const BEGINNING_BYTES: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_files_are_recognised() {
        let text = "name = \"m\"\ntowers = 1\ninput = { channels = 1, height = 2, width = 2 }\n\
                    layer = [{ kind = \"linear\", name = \"fc\", units = 2 }]";
        let network = Network::parse(text).unwrap();
        let bytes = file(&network, &network.initial_weights(1, 1)).unwrap();
        assert!(is_ours(&bytes[..BEGINNING_BYTES as usize]));
        assert!(!is_ours(b"\x08\x08\x12\x07pytorch") && !is_ours(b"") && !is_ours(b"text"));
        assert!(matches!(file(&network, &Tensors::new()), Err(OnnxError::Missing { name }) if name == "fc.weight"));
    }
}
