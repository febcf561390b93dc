//! What sequences begin with alike, such as a system message: computed once for all of them.
//!
//! A row depends on the tokens before it and on nothing behind it, so where two sequences begin alike their rows are the
//! same, keys and values included. Only rows that carry no label are shared: each label keeps a row of its own.

/// A beginning that an earlier sequence computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Which sequence does.
    pub by: usize,
    /// Tokens that both begin with, at least 1.
    pub tokens: usize,
}

/// For each of some sequences what it need not compute itself: they are put into families that begin alike, such that most
/// rows are saved. `beginnings` are the tokens that may be shared, as [`Sequence::beginning`](crate::Sequence::beginning)
/// tells them.
pub fn shared_beginnings(beginnings: &[&[u32]]) -> Vec<Option<Shared>> {
    let mut order: Vec<usize> = (0..beginnings.len()).collect();
    order.sort_by_key(|&i| beginnings[i]);
    let alike: Vec<usize> =
        order.windows(2).map(|pair| alike(beginnings[pair[0]], beginnings[pair[1]])).collect();
    let mut families = Vec::new();
    best(&order, &alike, &mut families);

    let mut shared = vec![None; beginnings.len()];
    for Family { members, tokens } in families {
        let Some(&by) = members.iter().min() else { continue };
        for member in members.iter().copied().filter(|&member| member != by) {
            shared[member] = Some(Shared { by, tokens });
        }
    }
    shared
}

/// Sequences that share their first tokens.
struct Family<'a> {
    members: &'a [usize],
    tokens: usize,
}

/// The families of `members`, in order of their tokens, of which neighbours are `alike` in so many first ones: either all
/// of them are one, or where the fewest are alike they part. How many rows that saves.
fn best<'a>(members: &'a [usize], alike: &[usize], families: &mut Vec<Family<'a>>) -> usize {
    let Some(&tokens) = alike.iter().min() else { return 0 };
    let (known, mut saved, mut start) = (families.len(), 0, 0);
    for end in (0..=alike.len()).filter(|&i| alike.get(i).is_none_or(|&n| n == tokens)) {
        saved += best(&members[start..=end], &alike[start..end], families);
        start = end + 1;
    }
    let together = tokens * alike.len();
    if together < saved || together == 0 {
        return saved;
    }
    families.truncate(known);
    families.push(Family { members, tokens });
    together
}

/// How many first tokens are the same.
fn alike(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(beginnings: &[&[u32]]) -> (Vec<Option<(usize, usize)>>, usize) {
        let shared = shared_beginnings(beginnings);
        let saved = shared.iter().flatten().map(|shared| shared.tokens).sum();
        (shared.into_iter().map(|shared| shared.map(|s| (s.by, s.tokens))).collect(), saved)
    }

    #[test]
    fn one_system_message_is_computed_once() {
        let of = saved(&[&[1, 2, 3, 9], &[1, 2, 3, 8, 7], &[1, 2, 3]]);
        assert_eq!(of, (vec![None, Some((0, 3)), Some((0, 3))], 6));
    }

    #[test]
    fn each_system_message_has_its_family_where_that_saves_more() {
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[1, 2, 3, 4], &[1, 5, 6, 7], &[1, 8]);
        let of = saved(&[a, b, b, c, a, a]);
        assert_eq!(of.0, [None, None, Some((1, 4)), None, Some((0, 4)), Some((0, 4))]);
        // One of each: the token that begins them all is what there is to share.
        assert_eq!(saved(&[a, b, c]), (vec![None, Some((0, 1)), Some((0, 1))], 2));
    }

    #[test]
    fn nothing_alike_shares_nothing() {
        assert_eq!(saved(&[]).0, []);
        assert_eq!(saved(&[&[], &[1], &[2, 1], &[]]).0, [None; 4]);
    }

    #[test]
    fn what_is_shared_is_alike_and_computed_by_a_sequence_that_shares_nothing() {
        let mut stream = danlu_kernels::rng::Stream::new(4);
        for _ in 0..200 {
            let beginnings: Vec<Vec<u32>> = (0..1 + stream.next_below(12))
                .map(|_| (0..stream.next_below(6)).map(|_| stream.next_below(2) as u32).collect())
                .collect();
            let beginnings: Vec<&[u32]> = beginnings.iter().map(Vec::as_slice).collect();
            let shared = shared_beginnings(&beginnings);
            for (i, shared) in shared.iter().enumerate() {
                let Some(Shared { by, tokens }) = *shared else { continue };
                assert!(by < i && tokens > 0 && beginnings[by][..tokens] == beginnings[i][..tokens]);
            }
            assert!(shared.iter().flatten().all(|s| shared[s.by].is_none()), "{beginnings:?}");
        }
    }
}
