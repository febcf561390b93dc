/// Bytes in lower-case hexadecimal, as digests are written.
///
/// ```
/// assert_eq!(danlu_model::hex(&[0, 0xab]), "00ab");
/// ```
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
