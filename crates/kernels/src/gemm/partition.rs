//! Nearly equal parts of a range: the one way in which products share out rows, columns and blocks.

/// Rows `part` of `parts` nearly equal parts of `m` rows, as `(first, count)`.
#[inline(always)]
pub(crate) fn part(m: usize, parts: usize, part: usize) -> (usize, usize) {
    let (size, longer) = (m / parts, m % parts);
    (part * size + part.min(longer), size + usize::from(part < longer))
}
