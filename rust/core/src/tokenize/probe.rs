//! The text on which the fast engine must equal the reference before it is used.

/// Scripts, runs of spaces, digits, contractions, emoji, marks, control characters.
const PROBE: &str = concat!(
    "The quick brown fox doesn't jump; we're sure they've said I'll, she'd, I'M, IT'S, 'tis, o'clock ''s 'ſ rock'n'roll.\n",
    "  two   three    four     many                                        spaces \t\t tabs\t\n\n\n lines \r\n\r\n  \n \n x\n",
    "1 12 123 1234 12345 1,234.56 3.14e-10 0xFF v2.0 5th ½ ¼ x² y³ Ⅷ ٣٤٥ १२३ 一二三 ①② 2024-01-31T12:30:00Z\n",
    "camelCase PascalCase SCREAMING_CASE snake_case kebab-case HTTPServer iPhone McDonald's ÉCOLE École ǅungla ʰʲ\n",
    "for (int i = 0; i < n; ++i) { a[i] += \"x\\n\"; } // comment /* … */ <a href='#'>b</a> == != -> => :: ... --- ***\n",
    "naïve café Ångström Straße señor Łódź İstanbul ΑΒΓ αβγ Привет мир שלום עולם مرحبا بالعالم हिन्दी ไทย 한국어 조선말\n",
    "今天天气很好，我们去公园玩吧。日本語のテキスト、カタカナ・ひらがな「引用」　全角スペース ｆｕｌｌ １２３\n",
    "😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ✔️ ☃ ♥ ∑∫√∞ ≤≥≠ ←→ “quotes” ‘single’ – — … € £ ¥ © ® ™ ° · •\n",
    "null \u{0} bell \u{7} escape \u{1b}[0m delete \u{7f} nel \u{85} nbsp \u{a0}x\u{a0} thin\u{2009}space zero\u{200b}width ",
    "line\u{2028}paragraph\u{2029} bom\u{feff} private\u{e000} plane\u{1f9ff} tag\u{e0041} last\u{10ffff} \u{2581}meta\u{2581}\u{2581}\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!!!!!!!!!! ================ supercalifragilistic \n\n  ",
);

/// The probe with some of the added tokens, alone, among letters, and between spaces.
pub fn probe_text<'a>(added_tokens: impl Iterator<Item = (&'a str, u32)>) -> String {
    const MOST: usize = 40;
    let mut text = String::from(PROBE);
    for (token, _) in added_tokens.take(MOST) {
        for part in [token, "a", token, token, " b ", token, " \n", token, "\n"] {
            text.push_str(part);
        }
    }
    text.push_str("end.  ");
    text
}
