//! Topics and patterns once more, as plainly as can be: token by token, by recursion, from the
//! words of the contract alone.

const RESERVED: &str = "_hailmary";

fn is_token(token: &str) -> bool {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "_:/-".contains(c);
    !token.is_empty() && token.chars().all(is_legal)
}

fn tokens(text: &[u8]) -> Option<Vec<&str>> {
    let text = std::str::from_utf8(text).ok()?;
    let tokens: Vec<_> = text.split('.').collect();
    ((1..=255).contains(&text.len()) && tokens.len() <= 16).then_some(tokens)
}

/// Whether this is a topic.
pub(crate) fn is_topic(text: &[u8]) -> bool {
    tokens(text).is_some_and(|tokens| tokens.into_iter().all(is_token))
}

/// Whether this is a pattern.
pub(crate) fn is_pattern(text: &[u8]) -> bool {
    let Some(tokens) = tokens(text) else {
        return false;
    };
    let last = tokens.len() - 1;
    let is_legal = |(at, token): (usize, &str)| match token {
        "*" => true,
        ">" => at == last,
        _ => is_token(token),
    };
    tokens.into_iter().enumerate().all(is_legal)
}

/// Whether a legal pattern stands for a legal topic.
pub(crate) fn matches(pattern: &str, topic: &str) -> bool {
    let pattern: Vec<_> = pattern.split('.').collect();
    let topic: Vec<_> = topic.split('.').collect();
    // No wildcard stands for the token that the bus's own topics begin with.
    let is_open = topic[0] != RESERVED || pattern[0] == RESERVED;
    is_open && rest_matches(&pattern, &topic)
}

/// Whether a rule's legal pattern speaks of a legal topic: of the bus's own as of any others.
pub(crate) fn covers(pattern: &str, topic: &str) -> bool {
    let pattern: Vec<_> = pattern.split('.').collect();
    let topic: Vec<_> = topic.split('.').collect();
    rest_matches(&pattern, &topic)
}

/// Whether a topic is the bus's own.
pub(crate) fn is_reserved(topic: &[u8]) -> bool {
    topic.split(|byte| *byte == b'.').next() == Some(RESERVED.as_bytes())
}

fn rest_matches(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        (["*", pattern @ ..], [_, topic @ ..]) => rest_matches(pattern, topic),
        ([token, pattern @ ..], [first, topic @ ..]) if token == first => {
            rest_matches(pattern, topic)
        }
        _ => false,
    }
}

/// Topics such that a pattern which stands for all of them stands for whatever this one does: its
/// wildcards are put in by a token that no other pattern names.
pub(crate) fn witnesses(pattern: &str) -> Vec<String> {
    const FRESH: &str = "fresh-token";
    let closed = |tokens: &str| tokens.replace('*', FRESH);
    match pattern.strip_suffix('>') {
        None => vec![closed(pattern)],
        Some(head) => (1..=17)
            .map(|more| closed(head) + &vec![FRESH; more].join("."))
            .collect(),
    }
}
