//! Ends of turn that a content brings along.

/// Bytes of the shortest mark that is taken for an end of turn, where it is not the EOS token.
const SHORTEST: usize = 4;

/// The content without the ends of turn at its end, where the template writes one `behind` it.
pub fn without_end<'a>(content: &'a str, behind: &str, eos: Option<&str>) -> &'a str {
    let Some(own) = behind.split_whitespace().next() else {
        return content;
    };
    let own = Some(own).filter(|own| own.len() >= SHORTEST || Some(*own) == eos);
    let mut bare = content;
    loop {
        let text = bare.trim_end();
        let marks = [own, eos.filter(|eos| !eos.is_empty())];
        let Some(shorter) = marks
            .into_iter()
            .flatten()
            .find_map(|mark| text.strip_suffix(mark))
        else {
            return bare;
        };
        bare = shorter;
    }
}

/// Whether neither the template, which writes `behind` a content, nor the content itself ends the turn.
pub fn is_endless(content: &str, behind: &str, eos: Option<&str>) -> bool {
    behind.trim_end().is_empty()
        && !eos.is_some_and(|eos| !eos.is_empty() && content.trim_end().ends_with(eos))
}

/// The content without the end of turn that it brings along where the template, which writes `behind` it, has none.
pub fn without_own_end<'a>(content: &'a str, behind: &str, eos: Option<&str>) -> &'a str {
    let ended = eos.filter(|eos| !eos.is_empty() && behind.trim_end().is_empty());
    ended
        .and_then(|eos| content.trim_end().strip_suffix(eos))
        .unwrap_or(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ends_are_taken_off() {
        let eos = Some("</s>");
        assert_eq!(
            without_end("4 <e><|im_end|>\n", "<|im_end|>\n", eos),
            "4 <e>"
        );
        assert_eq!(without_end("4</s><|end|>", "<|end|>\n</s>", eos), "4");
        assert_eq!(without_end("4</s>", "\n", eos), "4</s>");
        assert_eq!(without_end("[4]", "]", eos), "[4]");
        assert!(is_endless("4", "\n", eos) && !is_endless("4</s>", "", eos));
    }
}
