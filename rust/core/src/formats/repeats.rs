//! Names that stand twice in one object or header: of what they say, all but one would be lost.

use std::collections::HashSet;

use crate::reject::shorten;

/// Of so many names each is compared with all others.
const FEW: usize = 32;

/// The first two names that are the same, but for space and byte order marks around them.
pub fn repeated<T>(items: &[T], name: impl Fn(&T) -> &str) -> Option<[&T; 2]> {
    let first = |later: usize| {
        let is_same = |earlier: &&T| plain(name(earlier)) == plain(name(&items[later]));
        items[..later].iter().find(is_same)
    };
    let at = if items.len() > FEW {
        let mut seen = HashSet::with_capacity(items.len());
        items
            .iter()
            .position(|item| !seen.insert(plain(name(item))))
    } else if items.iter().any(|item| is_padded(name(item))) {
        (0..items.len()).find(|&later| first(later).is_some())
    } else {
        let is_there = |at: usize| {
            items[..at]
                .iter()
                .any(|earlier| name(earlier) == name(&items[at]))
        };
        (1..items.len()).find(|&at| is_there(at))
    };
    at.and_then(|at| Some([first(at)?, &items[at]]))
}

/// A name without space and byte order marks around it.
pub fn plain(name: &str) -> &str {
    name.trim_matches(|sign: char| sign.is_whitespace() || sign == '\u{feff}')
}

/// Whether something other than visible ASCII stands at an end of the name.
fn is_padded(name: &str) -> bool {
    let ends = [name.as_bytes().first(), name.as_bytes().last()];
    !ends.into_iter().flatten().all(u8::is_ascii_graphic)
}

/// What is wrong with two such names of `kind`.
pub fn twice(kind: &str, names: [&str; 2]) -> String {
    let [first, second] = names.map(shorten);
    if names[0] == names[1] {
        return format!("{kind} '{first}' is there more than once");
    }
    format!("{kind}s '{first}' and '{second}' differ in nothing but space")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(names: &[String]) -> Option<[&String; 2]> {
        let same = |at: usize| {
            names[..at]
                .iter()
                .find(|earlier| plain(earlier) == plain(&names[at]))
        };
        (0..names.len()).find_map(|at| Some([same(at)?, &names[at]]))
    }

    proptest! {
        #[test]
        fn the_first_two_are_found(names in prop::collection::vec("[ \u{feff}]?[a-e\u{e9}]{0,3}[ \t]?", 0..50)) {
            prop_assert_eq!(repeated(&names, |name| name), slow(&names));
        }
    }
}
