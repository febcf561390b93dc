//! Division of a range into nearly equal parts. Rows, columns and blocks of products are divided only by this
//! function.

/// Returns part `part` of `m` rows as `(first, count)`, if the rows are divided into `parts` nearly equal
/// parts.
#[inline(always)]
pub(crate) fn part(m: usize, parts: usize, part: usize) -> (usize, usize) {
    let (size, longer) = (m / parts, m % parts);
    (part * size + part.min(longer), size + usize::from(part < longer))
}
