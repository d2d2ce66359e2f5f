//! Bounds on a template's source, so that parsing and compiling it needs a known stack and time.
//!
//! The parser guards what is bracketed, but not chains (`a + b + c`, `x|trim|trim`, `not not x`, `elif`), whose trees are
//! as deep as the chain is long. A tree is never deeper than the tokens between two commas with those of the brackets
//! around them, so these are counted.

use minijinja::machinery::{Token, WhitespaceConfig, tokenize};
use minijinja::{Error, ErrorKind};

/// Bytes and tokens of a template; the longest known one has 30,000 bytes.
const MOST_BYTES: usize = 1 << 20;
const MOST_TOKENS: usize = 100_000;
/// Tokens of an expression with those around it, and branches of an `if` with those around it.
pub const DEEPEST: usize = 1000;
/// Arguments of a call or a macro.
const MOST_ARGUMENTS: usize = 2000;

/// What stands in one pair of brackets, or in a tag.
#[derive(Default)]
struct Level {
    tokens: usize,  // since the last comma
    deepest: usize, // depth of the brackets since the last comma
    depth: usize,   // of what stands before the last comma
    commas: usize,
    round: bool,
}

impl Level {
    fn end(&mut self) -> usize {
        self.depth = self.depth.max(self.tokens + self.deepest);
        (self.tokens, self.deepest) = (0, 0);
        self.depth
    }
}

/// Refuse a source that is too long or nests too deep. What is no template at all is the parser's to refuse.
#[allow(clippy::default_trait_access)] // the syntax's type is not public
pub fn check(source: &str, spaces: WhitespaceConfig) -> Result<(), Error> {
    if source.len() > MOST_BYTES {
        return Err(bound(format!(
            "the template has {} bytes, more than {MOST_BYTES}",
            source.len()
        )));
    }
    let (mut levels, mut open, mut branches): (Vec<Level>, usize, Vec<usize>) =
        (Vec::new(), 0, Vec::new());
    let mut keyword = false; // a tag's first word comes next
    for (count, token) in tokenize(source, false, Default::default(), spaces).enumerate() {
        let Ok((token, span)) = token else { break };
        let line = span.start_line;
        if count > MOST_TOKENS {
            return Err(bound(format!(
                "the template has more than {MOST_TOKENS} words and signs (template line {line})"
            )));
        }
        let first = std::mem::take(&mut keyword);
        let mut depth = 0;
        match token {
            Token::TemplateData(_) => continue,
            Token::VariableStart | Token::BlockStart => {
                keyword = matches!(token, Token::BlockStart);
                (levels, open) = (vec![Level::default()], 0);
            }
            Token::VariableEnd | Token::BlockEnd => {
                depth = levels.first_mut().map_or(0, Level::end);
                levels.clear();
            }
            Token::Comma | Token::Colon => {
                if let Some(level) = levels.last_mut() {
                    open -= level.tokens;
                    depth = open + level.end();
                    level.commas += 1;
                    if level.round && level.commas >= MOST_ARGUMENTS {
                        return Err(bound(format!(
                            "more than {MOST_ARGUMENTS} arguments stand in one pair of parentheses (template line {line})"
                        )));
                    }
                }
            }
            Token::BracketClose | Token::ParenClose | Token::BraceClose => {
                if let (Some(mut level), Some(outer)) = (levels.pop(), levels.last_mut()) {
                    open -= level.tokens;
                    let inner = level.end();
                    outer.deepest = outer.deepest.max(inner);
                    depth = open + inner;
                }
            }
            other => {
                if let Token::Ident(word) = other {
                    match word {
                        "if" if first => branches.push(0),
                        "elif" if first => {
                            if let Some(count) = branches.last_mut() {
                                *count += 1;
                            }
                            depth = branches.iter().sum();
                        }
                        "endif" if first => {
                            branches.pop();
                        }
                        _ => {}
                    }
                }
                if let Some(level) = levels.last_mut() {
                    level.tokens += 1;
                    open += 1;
                }
                if let Token::BracketOpen | Token::ParenOpen | Token::BraceOpen = other {
                    levels.push(Level {
                        round: matches!(other, Token::ParenOpen),
                        ..Level::default()
                    });
                }
                depth = depth.max(open);
            }
        }
        if depth > DEEPEST {
            return Err(bound(format!(
                "an expression or the branches of an if are longer or deeper than {DEEPEST} words and signs (template \
                 line {line}); set parts of it as variables"
            )));
        }
    }
    Ok(())
}

fn bound(rule: String) -> Error {
    Error::new(ErrorKind::OutOfFuel, rule)
}
