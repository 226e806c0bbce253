//! As much of Rust's grammar as the other rules need: comments, literals, and items that are only for tests.
//!
//! What is removed becomes blanks of the same length, so that lines keep their numbers.

const MARK: &str = "#[cfg(test)]";

/// The text with comments blanked.
pub fn without_comments(text: &str) -> String {
    blank(text, false)
}

/// The text with comments and the content of literals blanked: only code is left.
pub fn code_only(text: &str) -> String {
    blank(text, true)
}

/// The code of a file (as from [`code_only`]) without the items under `#[cfg(test)]`.
pub fn without_tests(code: &str) -> String {
    let mut left = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        let end = at + MARK.len() + item_length(&rest[at + MARK.len()..]);
        left.push_str(&rest[..at]);
        rest = rest[end..].strip_prefix('\n').unwrap_or(&rest[end..]);
    }
    left.push_str(rest);
    left
}

/// The modules in files of their own that a file (as from [`code_only`]) has only for its tests.
pub fn test_modules(code: &str) -> Vec<&str> {
    let after_marks = code.split(MARK).skip(1);
    let heads = after_marks.filter_map(|after| after[..item_length(after)].trim().strip_suffix(';'));
    heads.filter_map(|head| head.rsplit_once("mod ")).map(|(_, name)| name.trim()).collect()
}

/// How far an item reaches: to its first `;`, or to the end of the block that opens before one.
fn item_length(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank(text: &str, literals_too: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, is_blanked) = match piece(rest, out.chars().next_back()) {
            Piece::Comment(length) => (length, true),
            Piece::Literal(length) => (length, literals_too),
            Piece::Code => (first.len_utf8(), false),
        };
        let (taken, after) = rest.split_at(length);
        if is_blanked {
            out.extend(taken.chars().map(|c| if c == '\n' { c } else { ' ' }));
        } else {
            out.push_str(taken);
        }
        rest = after;
    }
    out
}

enum Piece {
    Comment(usize),
    Literal(usize),
    Code,
}

fn piece(rest: &str, before: Option<char>) -> Piece {
    let starts_word = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return Piece::Comment(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Piece::Comment(block_comment(rest));
    }
    if rest.starts_with('"') {
        return Piece::Literal(quoted(rest));
    }
    if rest.starts_with('\'') {
        return character(rest).map_or(Piece::Code, Piece::Literal);
    }
    if starts_word {
        let raw = ["r", "br", "cr"].iter().find_map(|prefix| raw_string(rest, prefix));
        return raw.map_or(Piece::Code, Piece::Literal);
    }
    Piece::Code
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn quoted(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character literal's length; none for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    let (_, first) = characters.next()?;
    if first == '\\' {
        let (after_escaped, _) = characters.nth(1)?;
        return rest[after_escaped..].find('\'').map(|at| after_escaped + at + 1);
    }
    let (at, second) = characters.next()?;
    (second == '\'').then_some(at + 1)
}

fn raw_string(rest: &str, prefix: &str) -> Option<usize> {
    let after = rest.strip_prefix(prefix)?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let opening = prefix.len() + hashes + 1;
    Some(body.find(&end).map_or(rest.len(), |at| opening + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        for (text, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x // \" y", 1)"#, r#"f(           , 1)"#),
            (r##"f(r#"a"b"#, 1)"##, "f(        , 1)"),
            ("fn f<'a>(c: &'a str) { '{' }", "fn f<'a>(c: &'a str) {     }"),
            (r"['\'', '\n', '\u{7b}']", "[    ,     ,         ]"),
        ] {
            assert_eq!(code_only(text), code, "{text}");
        }
    }

    #[test]
    fn comments_go_and_literals_stay() {
        assert_eq!(without_comments("#[serde(with = \"x\")] // y"), "#[serde(with = \"x\")]     ");
    }

    #[test]
    fn items_for_tests_go() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { { } } }\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}";
        let left = without_tests(code);
        assert!(left.contains("fn a") && left.contains("fn c") && left.contains("fn e"), "{left}");
        assert!(!left.contains("fn b") && !left.contains("mod d"), "{left}");
        assert_eq!(test_modules(code), ["d"]);
    }
}
