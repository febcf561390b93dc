//! Nearly equal parts of a range. Products divide rows, columns and blocks only in this way.

/// Returns part `part` of `parts` nearly equal parts of `m` rows, as `(first, count)`.
#[inline(always)]
pub(crate) fn part(m: usize, parts: usize, part: usize) -> (usize, usize) {
    let (size, longer) = (m / parts, m % parts);
    (part * size + part.min(longer), size + usize::from(part < longer))
}
