//! Division of a range into nearly equal parts. Packing and multiplication both use this function, so they
//! agree on the rows of each panel.

/// Returns part `part` of `m` rows as `(first, count)`, if the rows are divided into `parts` nearly equal
/// parts.
#[inline(always)]
pub(crate) fn part(m: usize, parts: usize, part: usize) -> (usize, usize) {
    let (size, longer) = (m / parts, m % parts);
    (part * size + part.min(longer), size + usize::from(part < longer))
}
