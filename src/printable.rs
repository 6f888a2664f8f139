//! Text of others, so that it does not steer the terminal of whoever reads it.

/// The text, with control characters as escapes such as `\t` and `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_alone_are_escaped() {
        assert_eq!(printable("a\\ \"ü\" 文"), "a\\ \"ü\" 文");
        assert_eq!(printable("\x1b[2J\t\n\u{9b}"), "\\u{1b}[2J\\t\\n\\u{9b}");
    }
}
