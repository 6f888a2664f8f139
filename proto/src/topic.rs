//! What a topic and a topic pattern may be, and the plain rule by which one matches the other.
//!
//! A topic is 1 to 255 bytes: up to 16 tokens of `[A-Za-z0-9_:/-]+`, joined by single dots. A
//! pattern is the same, save that a token may be `*`, which stands for exactly one token, and the
//! last one may be `>`, which stands for one or more.
//!
//! Topics whose first token is [`RESERVED_TOKEN`] are the bus's own: a subscriber's pattern stands
//! for them only if it names that token. So whoever asks for everything gets what applications
//! publish and nothing else, as with MQTT's topics that begin with `$` (MQTT 5.0, section 4.7.2).
//!
//! This module refuses to route: [`matches()`] holds one pattern against one topic, token by token,
//! which is what clients and tests need. A bus with many patterns has a better structure, and
//! tests that structure against this one.

use thiserror::Error;

/// The longest topic or pattern, in bytes. So its length is one byte, wherever it is kept.
pub const TOPIC_BYTES_MAX: usize = 255;

/// The most tokens of a topic or pattern. It bounds the depth of whatever walks them.
pub const TOPIC_TOKENS_MAX: usize = 16;

/// The first token of the topics that are the bus's own, such as `_hailmary.canary.0`. Nobody else
/// may publish there.
pub const RESERVED_TOKEN: &str = "_hailmary";

/// Why a byte string is no topic, or no pattern.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum TopicError {
    /// There is not one byte in it.
    #[error("a topic is not empty")]
    Empty,
    /// It has more than [`TOPIC_BYTES_MAX`] bytes.
    #[error("a topic has at most {TOPIC_BYTES_MAX} bytes")]
    TooLong,
    /// It has more than [`TOPIC_TOKENS_MAX`] tokens.
    #[error("a topic has at most {TOPIC_TOKENS_MAX} tokens between its dots")]
    TooManyTokens,
    /// It begins or ends with a dot, or has two dots in a row.
    #[error("a topic's tokens are not empty: no dot at either end, no two dots in a row")]
    EmptyToken,
    /// It has a byte that is none of `[A-Za-z0-9_:/-]`, and no dot.
    #[error(
        "a topic's tokens are made of A-Z a-z 0-9 _ : / and - alone; \
         a pattern may also have the tokens * and >"
    )]
    BadByte,
    /// A pattern has a wildcard beside other bytes of a token.
    #[error("a pattern's * and > stand alone between dots, as in search.*.photo or search.>")]
    PartialWildcard,
    /// A pattern has a `>` before its last token.
    #[error("a pattern's > is its last token")]
    TailNotLast,
}

/// Whether tokens are made of a byte, for every byte: one look-up instead of a chain of
/// comparisons.
static IS_TOKEN_BYTE: [bool; 256] = token_bytes();

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "runs in the compiler alone, over 0 to 255"
)]
const fn token_bytes() -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = matches!(
            byte as u8,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b':' | b'/' | b'-'
        );
        byte += 1;
    }
    table
}

#[inline(always)]
fn is_token_byte(byte: u8) -> bool {
    // The table has an entry for every byte, so the other case costs nothing.
    IS_TOKEN_BYTE
        .get(usize::from(byte))
        .copied()
        .unwrap_or_default()
}

/// Checks that `topic` is a topic, in one pass.
///
/// # Errors
///
/// Its length, where that is wrong, else a byte or empty token, else the number of tokens.
///
/// ```
/// use hailmary_proto::topic::{TopicError, check_topic};
///
/// assert_eq!(check_topic(b"search.index.photo"), Ok(()));
/// assert_eq!(check_topic(b"search..photo"), Err(TopicError::EmptyToken));
/// ```
pub fn check_topic(topic: &[u8]) -> Result<(), TopicError> {
    check_length(topic)?;
    let (mut dots, mut token_start) = (0, 0);
    for (at, &byte) in topic.iter().enumerate() {
        if is_token_byte(byte) {
            continue;
        }
        if byte != b'.' {
            return Err(TopicError::BadByte);
        }
        if at == token_start {
            return Err(TopicError::EmptyToken);
        }
        dots += 1;
        token_start = at + 1;
    }
    if token_start == topic.len() {
        Err(TopicError::EmptyToken)
    } else if dots >= TOPIC_TOKENS_MAX {
        Err(TopicError::TooManyTokens)
    } else {
        Ok(())
    }
}

/// Checks that `pattern` is a pattern. Every topic is one.
///
/// # Errors
///
/// Its length, where that is wrong, else the first other rule that it breaks, from its start.
///
/// ```
/// use hailmary_proto::topic::{TopicError, check_pattern};
///
/// assert_eq!(check_pattern(b"search.*.photo"), Ok(()));
/// assert_eq!(check_pattern(b"search.>"), Ok(()));
/// assert_eq!(check_pattern(b"search.>.photo"), Err(TopicError::TailNotLast));
/// ```
pub fn check_pattern(pattern: &[u8]) -> Result<(), TopicError> {
    check_length(pattern)?;
    let mut tail = false;
    for (before, token) in tokens(pattern).enumerate() {
        if before == TOPIC_TOKENS_MAX {
            return Err(TopicError::TooManyTokens);
        }
        if tail {
            return Err(TopicError::TailNotLast);
        }
        check_pattern_token(token)?;
        tail = token == b">";
    }
    Ok(())
}

fn check_length(topic: &[u8]) -> Result<(), TopicError> {
    match topic.len() {
        0 => Err(TopicError::Empty),
        1..=TOPIC_BYTES_MAX => Ok(()),
        _ => Err(TopicError::TooLong),
    }
}

fn check_pattern_token(token: &[u8]) -> Result<(), TopicError> {
    if token.is_empty() {
        return Err(TopicError::EmptyToken);
    }
    if token == b"*" || token == b">" {
        return Ok(());
    }
    match token.iter().find(|&&byte| !is_token_byte(byte)) {
        None => Ok(()),
        Some(b'*' | b'>') => Err(TopicError::PartialWildcard),
        Some(_) => Err(TopicError::BadByte),
    }
}

/// Whether a topic is the bus's own, or a pattern names the bus's own topics: whether the first
/// token is [`RESERVED_TOKEN`].
#[must_use]
pub fn is_reserved(topic: &[u8]) -> bool {
    tokens(topic).next() == Some(RESERVED_TOKEN.as_bytes())
}

/// Whether whoever subscribes to `pattern` wants `topic`: whether the pattern [covers](covers())
/// the topic, and names the bus's own topics where the topic is one of them.
///
/// Both must be legal ([`check_topic`], [`check_pattern`]); of others the answer means nothing.
///
/// ```
/// use hailmary_proto::topic::matches;
///
/// assert!(matches(b"search.*.photo", b"search.index.photo"));
/// assert!(matches(b"search.>", b"search.index.photo"));
/// assert!(!matches(b"search.>", b"search"));
/// assert!(!matches(b">", b"_hailmary.canary.0"));
/// ```
#[must_use]
pub fn matches(pattern: &[u8], topic: &[u8]) -> bool {
    covers(pattern, topic) && (!is_reserved(topic) || is_reserved(pattern))
}

/// Whether `topic` is one of those that `pattern` stands for token by token, the bus's own
/// included: what a rule speaks of, which must not leave anything out.
///
/// Both must be legal, as for [`matches()`].
///
/// ```
/// use hailmary_proto::topic::covers;
///
/// assert!(covers(b">", b"_hailmary.canary.0"));
/// ```
#[must_use]
pub fn covers(pattern: &[u8], topic: &[u8]) -> bool {
    let mut topic = tokens(topic);
    for wanted in tokens(pattern) {
        match topic.next() {
            None => return false,
            Some(_) if wanted == b">" => return true,
            Some(token) if wanted == b"*" || wanted == token => {}
            Some(_) => return false,
        }
    }
    topic.next().is_none()
}

/// Whether every topic that `narrow` [matches](matches()) is one that `wide` matches.
///
/// Both must be legal patterns.
///
/// ```
/// use hailmary_proto::topic::includes;
///
/// assert!(includes(b"search.>", b"search.*.photo"));
/// assert!(!includes(b"search.*", b"search.>"));
/// ```
#[must_use]
pub fn includes(wide: &[u8], narrow: &[u8]) -> bool {
    if is_reserved(narrow) && !is_reserved(wide) {
        return false;
    }
    let mut narrow = tokens(narrow);
    for wanted in tokens(wide) {
        match narrow.next() {
            None => return false,
            Some(_) if wanted == b">" => return true,
            Some(token) if wanted == b"*" && token != b">" => {}
            Some(token) if wanted == token => {}
            Some(_) => return false,
        }
    }
    narrow.next().is_none()
}

fn tokens(topic: &[u8]) -> impl Iterator<Item = &[u8]> {
    topic.split(|&byte| byte == b'.')
}

/// Whether two topics are the same, without a call where they have as many bytes as most: then
/// the first and the last eight or sixteen are compared, those in the middle perhaps twice.
#[must_use]
#[inline(always)]
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    match one.len() {
        8..=16 => ends::<8>(one) == ends::<8>(other),
        17..=32 => ends::<16>(one) == ends::<16>(other),
        _ => one == other,
    }
}

/// The first and the last `N` bytes.
#[inline(always)]
pub(crate) fn ends<const N: usize>(bytes: &[u8]) -> Option<([u8; N], [u8; N])> {
    Some((*bytes.first_chunk()?, *bytes.last_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Mostly what topics and patterns are made of, in tokens short enough for there to be many.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            8 => proptest::sample::select(&b"abZ09_:/-"[..]),
            8 => Just(b'.'),
            2 => proptest::sample::select(&b"*>"[..]),
            1 => any::<u8>(),
        ];
        let token = prop_oneof![
            8 => vec(proptest::sample::select(&b"abZ09_:/-"[..]), 1..24),
            2 => Just(b"*".to_vec()),
            1 => Just(b">".to_vec()),
        ];
        prop_oneof![
            vec(byte, 0..300),
            vec(token, 1..20).prop_map(|tokens| tokens.join(&b'.')),
        ]
    }

    fn is_plain(token: &[u8]) -> bool {
        let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"_:/-".contains(byte);
        !token.is_empty() && token.iter().all(is_legal)
    }

    fn has_legal_size(text: &[u8]) -> bool {
        (1..=255).contains(&text.len()) && text.split(|&byte| byte == b'.').count() <= 16
    }

    /// Short patterns of few tokens, so that many include one another.
    fn pattern() -> impl Strategy<Value = Vec<u8>> {
        let token = proptest::sample::select(&["a", "b", "*", RESERVED_TOKEN][..]);
        (vec(token, 0..4), any::<bool>()).prop_filter_map("empty", |(mut tokens, is_open)| {
            tokens.extend(is_open.then_some(">"));
            (!tokens.is_empty()).then(|| tokens.join(".").into_bytes())
        })
    }

    /// All topics of one to five tokens that tell such patterns apart.
    fn topics() -> Vec<Vec<u8>> {
        let tokens = ["a", "b", "c", RESERVED_TOKEN];
        let mut topics: Vec<String> = tokens.map(str::to_owned).into();
        for length in 1..5 {
            let longest: Vec<_> = topics
                .iter()
                .filter(|topic| topic.split('.').count() == length)
                .flat_map(|topic| tokens.map(|token| format!("{topic}.{token}")))
                .collect();
            topics.extend(longest);
        }
        topics.into_iter().map(String::into_bytes).collect()
    }

    proptest! {
        #[test]
        fn a_pattern_includes_another_where_it_matches_all_that_the_other_does(
            wide in pattern(),
            narrow in pattern(),
        ) {
            let matched = topics().into_iter().filter(|topic| matches(&narrow, topic));
            let expected = matched.into_iter().all(|topic| matches(&wide, &topic));
            prop_assert_eq!(includes(&wide, &narrow), expected);
        }

        #[test]
        fn a_topic_is_legal_by_its_rule(text in text()) {
            let is_legal = has_legal_size(&text) && text.split(|&byte| byte == b'.').all(is_plain);
            prop_assert_eq!(check_topic(&text).is_ok(), is_legal);
            if is_legal {
                prop_assert_eq!(check_pattern(&text), Ok(()));
                prop_assert!(matches(&text, &text));
                prop_assert!(matches(b">", &text));
            }
        }

        #[test]
        fn a_pattern_is_legal_by_its_rule(text in text()) {
            let mut tokens: Vec<&[u8]> = text.split(|&byte| byte == b'.').collect();
            tokens.pop_if(|last| *last == b">");
            let is_legal = has_legal_size(&text)
                && tokens.iter().all(|token| is_plain(token) || *token == b"*");
            prop_assert_eq!(check_pattern(&text).is_ok(), is_legal);
        }
    }
    #[test]
    fn topics_are_the_same_where_every_byte_is() {
        for length in 0..=TOPIC_BYTES_MAX {
            let topic = vec![b'a'; length];
            assert!(is_same(&topic, &topic.clone()));
            let longer = vec![b'a'; length + 1];
            assert!(!is_same(&topic, &longer) && !is_same(&longer, &topic));
            for place in 0..length {
                let mut other = topic.clone();
                other[place] = b'b';
                assert!(!is_same(&topic, &other), "{place} of {length}");
            }
        }
    }
}
