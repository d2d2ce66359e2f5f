//! What is known of a format: its kind, its fields, what they are for and what stands in them.

/// A schema that rows can have. Those of one kind are tried in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    ShareGpt,
    Hh,
    UltraFeedback,
    Shp,
    Alpaca,
    Preference,
    Candidates,
    CandidateRows,
    Messages,
    PromptResponse,
    Instruction,
}

/// What the rows of a format hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A prompt with a chosen and a rejected response.
    Preferences,
    /// A prompt with any number of responses.
    Candidates,
    /// One response of a prompt's candidates; tried only where it is asked for.
    Ranked,
    /// A prompt with one response.
    Instructions,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preferences => "preferences",
            Self::Candidates => "candidates",
            Self::Ranked => "ranked",
            Self::Instructions => "instructions",
        }
    }

    /// The fields with the weights of tokens, which are beside those that a format takes.
    pub const fn weights(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Preferences => &[
                ("chosen_weights", "weights of the chosen response's tokens"),
                (
                    "rejected_weights",
                    "weights of the rejected response's tokens",
                ),
            ],
            Self::Candidates => &[("responses_weights", "weights of the responses' tokens")],
            Self::Ranked | Self::Instructions => {
                &[("response_weights", "weights of the response's tokens")]
            }
        }
    }
}

/// What a field is for. Required fields of one role stand in for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Prompt,
    Chosen,
    Rejected,
    /// [chosen, rejected].
    Pair,
    Responses,
    Response,
    /// Prompt and response.
    Chat,
    Scores,
    Other,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Chosen => "chosen",
            Self::Rejected => "rejected",
            Self::Pair => "pair",
            Self::Responses => "responses",
            Self::Response => "response",
            Self::Chat => "chat",
            Self::Scores => "scores",
            Self::Other => "other",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Chosen => "chosen response",
            Self::Rejected => "rejected response",
            Self::Pair => "chosen and rejected response",
            Self::Responses => "responses",
            Self::Response => "response",
            Self::Chat => "prompt and response",
            Self::Scores => "scores",
            Self::Other => "",
        }
    }
}

/// What stands in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Text,
    /// A list of messages.
    Chat,
    /// A chat that begins with the prompt.
    WholeChat,
    /// One message.
    Message,
    /// A text of marked turns.
    Transcript,
    /// [[question, answer], …].
    Turns,
    List,
    Number,
}

/// A field of a format.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub role: Role,
    /// What it is taken as, in words.
    pub meaning: &'static str,
    /// One of these; a required field without any is not asked for when a format is detected.
    pub shapes: &'static [Shape],
    pub required: bool,
}

pub const fn needs(name: &'static str, role: Role, shapes: &'static [Shape]) -> Field {
    Field {
        name,
        role,
        meaning: role.meaning(),
        shapes,
        required: true,
    }
}

pub const fn may(name: &'static str, role: Role, shapes: &'static [Shape]) -> Field {
    Field {
        required: false,
        ..needs(name, role, shapes)
    }
}

impl Field {
    #[must_use]
    pub const fn meaning(self, meaning: &'static str) -> Self {
        Self { meaning, ..self }
    }
}

/// The fields of a format, in one of the ways in which its rows are written.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub fields: &'static [Field],
    /// Fields that such a row does not have.
    pub without: &'static [&'static str],
}

/// A format.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub format: Format,
    /// As in the setting `format`.
    pub name: &'static str,
    pub kind: Kind,
    /// The usual form first.
    pub forms: &'static [Form],
    /// Fields of other formats that may say the prompt or a response once more: they are compared, not taken.
    pub compared: &'static [&'static str],
    /// What its rows look like, in Markdown.
    pub looks: &'static str,
    /// A row.
    pub example: &'static str,
}

pub const fn form(fields: &'static [Field]) -> Form {
    Form {
        fields,
        without: &[],
    }
}

impl Form {
    /// The required fields, those together that stand in for each other.
    pub fn needed(&self) -> Vec<Vec<&'static Field>> {
        let mut groups: Vec<Vec<&'static Field>> = Vec::new();
        for field in self.fields.iter().filter(|field| field.required) {
            match groups.iter_mut().find(|group| group[0].role == field.role) {
                Some(group) => group.push(field),
                None => groups.push(vec![field]),
            }
        }
        groups
    }
}

impl Entry {
    /// Whether the responses of a pair are the fields `chosen` and `rejected`, as texts or chats, in every form.
    pub fn is_plain(&self) -> bool {
        let is_plain = |field: &Field| {
            let shapes = [Shape::Text, Shape::Chat, Shape::WholeChat];
            match field.role {
                Role::Chosen | Role::Rejected => {
                    field.name == field.role.name()
                        && field.shapes.iter().all(|shape| shapes.contains(shape))
                }
                _ => true,
            }
        };
        self.forms
            .iter()
            .all(|form| form.fields.iter().all(is_plain))
    }

    /// All fields that the format takes; those of its usual form first, each once.
    pub fn fields(&self) -> Vec<&'static Field> {
        let of_kind: &'static [Field] = match self.kind {
            Kind::Preferences => &OF_PAIRS,
            Kind::Candidates => &OF_CANDIDATES,
            _ => &[],
        };
        let forms = self.forms.iter().flat_map(|form| form.fields);
        let mut found: Vec<&'static Field> = Vec::new();
        for field in forms.chain(&EVERYWHERE).chain(of_kind) {
            if found.iter().all(|before| before.name != field.name) {
                found.push(field);
            }
        }
        found
    }
}

/// Fields that every format takes. `row` is always counted anew.
pub static EVERYWHERE: [Field; 5] = [
    may("row", Role::Other, &[]).meaning("left out (rows are counted anew)"),
    may("system", Role::Other, &[Shape::Text]).meaning("system message"),
    may("tools", Role::Other, &[]).meaning("tools"),
    may("template_kwargs", Role::Other, &[]).meaning("variables of the chat template"),
    may("chat_template_kwargs", Role::Other, &[]).meaning("variables of the chat template"),
];
/// Fields that every format of pairs takes.
static OF_PAIRS: [Field; 8] = [
    may("score_chosen", Role::Scores, &[Shape::Number]).meaning(CHOSEN_SCORE),
    may("score_rejected", Role::Scores, &[Shape::Number]).meaning(REJECTED_SCORE),
    may("chosen_score", Role::Scores, &[Shape::Number]).meaning(CHOSEN_SCORE),
    may("rejected_score", Role::Scores, &[Shape::Number]).meaning(REJECTED_SCORE),
    may("chosen-rating", Role::Scores, &[Shape::Number]).meaning(CHOSEN_SCORE),
    may("rejected-rating", Role::Scores, &[Shape::Number]).meaning(REJECTED_SCORE),
    may("chosen_complete", Role::Other, &[]).meaning("whether the response ends"),
    may("rejected_complete", Role::Other, &[]).meaning("whether the response ends"),
];
/// Fields that every format of candidates takes.
static OF_CANDIDATES: [Field; 3] = [
    may("responses_complete", Role::Other, &[]).meaning("whether each response ends"),
    may("completions_complete", Role::Other, &[]).meaning("whether each response ends"),
    may("candidates_complete", Role::Other, &[]).meaning("whether each response ends"),
];
const CHOSEN_SCORE: &str = "score of the chosen response";
const REJECTED_SCORE: &str = "score of the rejected response";
