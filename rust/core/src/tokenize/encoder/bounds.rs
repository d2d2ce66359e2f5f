//! What a `tokenizer.json` may ask for: memory and time in proportion to the text.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Parts that a pattern has when its counted repetitions are written out.
const MOST_PARTS: usize = 1 << 20;
/// Normalizers and pre-tokenizers, and how much longer all together may make a text.
const MOST_STEPS: usize = 256;
const MOST_GROWTH: usize = 4096;
/// Characters of a word that `WordPiece` looks up from every place, and of a token of `Unigram`.
const MOST_CHARACTERS: usize = 256;
/// Characters in a row that are spaces, or are none: a pattern may look at each from each before it.
const MOST_SPACES: usize = 1 << 13;
const MOST_LETTERS: usize = 1 << 16;
/// Characters of the texts that show whether a pattern ends.
const PROBED: usize = 48;
const MOST_LETTERS_TRIED: usize = 256;

/// The parts of a file that decide on time and memory.
#[derive(Deserialize)]
pub struct Components<'a> {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
struct Limits {
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    unk_id: Value,
    #[serde(default)]
    max_input_chars_per_word: Value,
}

#[derive(Deserialize)]
struct Pieces {
    vocab: Vec<(String, f64)>,
}

impl<'a> Components<'a> {
    /// Says which part of the file asks for too much.
    pub fn checked(json: &'a [u8]) -> Result<Self, String> {
        let file: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let mut steps = file.steps();
        if steps.len() > MOST_STEPS {
            let count = steps.len();
            return Err(format!(
                "{count} normalizers and pre_tokenizers, of at most {MOST_STEPS}"
            ));
        }
        let growth = |step: &&Value| longer(step);
        let growth = steps.iter().map(growth).fold(1, usize::saturating_mul);
        if growth > MOST_GROWTH {
            return Err(format!(
                "normalizer: its steps can make a text more than {MOST_GROWTH} times as long"
            ));
        }
        collect(&file.decoder, &mut steps);
        if let Some(pattern) = steps
            .iter()
            .filter_map(|step| pattern(step))
            .find(|pattern| parts(pattern) > MOST_PARTS)
        {
            let shown: String = pattern.chars().take(80).collect();
            return Err(format!(
                "the pattern {shown:?} has more than {MOST_PARTS} parts"
            ));
        }
        check_model(file.model)?;
        Ok(file)
    }

    /// Normalizers and pre-tokenizers, one by one.
    fn steps(&self) -> Vec<&Value> {
        let mut steps = Vec::new();
        for part in [&self.normalizer, &self.pre_tokenizer] {
            collect(part, &mut steps);
        }
        steps
    }

    /// What stands for characters that the model lacks: a token, or (Unigram) an id.
    pub fn unknown(&self) -> (Option<String>, Option<u32>) {
        let Ok(limits) = serde_json::from_str::<Limits>(self.model.get()) else {
            return (None, None);
        };
        let id = limits.unk_id.as_u64().and_then(|id| id.try_into().ok());
        (limits.unk_token.as_str().map(String::from), id)
    }

    /// The patterns of normalizers and pre-tokenizers, whose time nobody knows.
    pub fn patterns(&self) -> Vec<&str> {
        self.steps().into_iter().filter_map(pattern).collect()
    }
}

fn check_model(model: &RawValue) -> Result<(), String> {
    let limits: Limits = serde_json::from_str(model.get()).map_err(|error| error.to_string())?;
    let word = limits.max_input_chars_per_word.as_u64().unwrap_or(0);
    if word > MOST_CHARACTERS as u64 {
        return Err(format!(
            "model: max_input_chars_per_word is at most {MOST_CHARACTERS}, got {word}"
        ));
    }
    let Ok(pieces) = serde_json::from_str::<Pieces>(model.get()) else {
        return Ok(()); // the vocabulary of another model
    };
    let long = |token: &&(String, f64)| token.0.chars().nth(MOST_CHARACTERS).is_some();
    match pieces.vocab.iter().find(long) {
        Some((token, _)) => {
            let shown: String = token.chars().take(80).collect();
            Err(format!(
                "model: a token has at most {MOST_CHARACTERS} characters, not so \"{shown}…\""
            ))
        }
        None => Ok(()),
    }
}

/// Says where a text has more characters in a row, without a space or of spaces, than patterns may look at.
pub fn check_runs(text: &str) -> Result<(), String> {
    let (mut count, mut spaces) = (0, false);
    for c in text.chars() {
        if c.is_whitespace() != spaces {
            (count, spaces) = (0, !spaces);
        }
        count += 1;
        let (most, what) = if spaces {
            (MOST_SPACES, "spaces")
        } else {
            (MOST_LETTERS, "characters without a space")
        };
        if count > most {
            return Err(format!(
                "more than {most} {what} in a row, which its patterns may take too long for"
            ));
        }
    }
    Ok(())
}

/// Try patterns on texts that go back and forth in them; says where one does not come to an end.
pub fn check_patterns(
    patterns: &[&str],
    encode: impl Fn(&str) -> Result<(), String>,
) -> Result<(), String> {
    if patterns.is_empty() {
        return Ok(()); // no text has to be tried
    }
    let mut letters: Vec<char> = "aA0 \n!é中".chars().collect();
    letters.extend(patterns.iter().flat_map(|pattern| pattern.chars()));
    letters.sort_unstable();
    letters.dedup();
    letters.truncate(MOST_LETTERS_TRIED);
    let end: String = std::iter::once('\u{1}')
        .chain(letters.iter().copied())
        .collect();
    for letter in letters {
        let text: String = std::iter::repeat_n(letter, PROBED).collect();
        let text = text + &end; // which has what a pattern may look for first
        match encode(&text) {
            Err(words) if words.contains("retry-limit") => {
                return Err(format!(
                    "a pattern of pre_tokenizer or normalizer does not come to an end on \"{letter}{letter}{letter}…\""
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The steps of a part, those of a sequence one by one.
fn collect<'a>(part: &'a Value, steps: &mut Vec<&'a Value>) {
    let lists = ["normalizers", "pretokenizers", "decoders"];
    match lists.iter().find_map(|list| part[*list].as_array()) {
        Some(list) => list.iter().for_each(|step| collect(step, steps)),
        None if part.is_null() => {}
        None => steps.push(part),
    }
}

fn pattern(step: &Value) -> Option<&str> {
    step["pattern"]["Regex"].as_str()
}

/// How much longer a step can make a text.
fn longer(step: &Value) -> usize {
    let more = step["prepend"].as_str().map_or(0, str::len);
    let content = step["content"].as_str().unwrap_or_default().len();
    let replaced = step["pattern"]["String"].as_str().map_or(1, str::len);
    (1 + more).max(content.div_ceil(replaced.max(1)))
}

/// About how many parts a pattern has when its counted repetitions are written out.
fn parts(pattern: &str) -> usize {
    let mut groups = vec![0usize]; // parts of each open group
    let mut last = 0; // of the latest one
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '(' => groups.push(0),
            ')' => {
                last = groups.pop().unwrap_or(0).max(1);
                match groups.last_mut() {
                    Some(open) => *open = open.saturating_add(last),
                    None => groups.push(last),
                }
            }
            '{' => {
                let Some((inside, behind)) = rest.as_str().split_once('}') else {
                    continue;
                };
                let times = inside.split(',').map(|number| number.parse().unwrap_or(1));
                let more = last.saturating_mul(times.max().unwrap_or(1usize).saturating_sub(1));
                if let Some(open) = groups.last_mut() {
                    *open = open.saturating_add(more);
                }
                last = last.saturating_add(more);
                rest = behind.chars();
            }
            _ => {
                if c == '\\' {
                    rest.next();
                }
                last = 1;
                if let Some(open) = groups.last_mut() {
                    *open = open.saturating_add(1);
                }
            }
        }
    }
    groups.into_iter().fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn repetitions_of_repetitions_multiply() {
        assert_eq!(parts("abc"), 3);
        assert_eq!(parts(r"\p{N}{1,3}"), 3);
        assert_eq!(parts("(ab){10}c"), 21);
        assert_eq!(parts("((a{1000}){1000}){1000}"), 1_000_000_000);
        assert!(parts(&format!("{}a{}", "(".repeat(99), "){99}".repeat(99))) > 1 << 40);
    }
}
