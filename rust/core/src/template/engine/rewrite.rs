//! The engine's instructions with every operation that can grow a value or look at one made a call of ours.

use std::collections::BTreeSet;

use minijinja::Value;
use minijinja::machinery::{Instruction, Instructions};

use super::keep;

#[derive(Default)]
pub struct Rewriter {
    /// The operations that are called.
    pub names: BTreeSet<&'static str>,
    /// Whether a comparison is chained.
    pub chained: bool,
}

impl Rewriter {
    fn call(&mut self, name: &str, count: Option<u16>) -> Instruction<'static> {
        let name = keep(name);
        self.names.insert(name);
        Instruction::CallFunction(name, count)
    }

    pub fn rewrite(&mut self, old: &Instructions<'static>) -> Instructions<'static> {
        let mut new = Instructions::new(old.name(), old.source());
        let mut places = Vec::with_capacity(old.len() + 1);
        let mut before = None;
        for index in 0..old.len() as u32 {
            places.push(new.len() as u32);
            let Some(instruction) = old.get(index) else {
                break;
            };
            let line = old.get_line(index).unwrap_or(0) as u16;
            for replacement in self.replace(instruction, before) {
                new.add_with_line(replacement, line);
            }
            before = Some(instruction);
        }
        places.push(new.len() as u32);
        let place = |target: u32| places.get(target as usize).copied().unwrap_or(target);
        for index in 0..new.len() as u32 {
            if let Some(
                Instruction::Iterate(target)
                | Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::BuildMacro(_, target, _),
            ) = new.get_mut(index)
            {
                *target = place(*target);
            }
        }
        new
    }

    fn replace(
        &mut self,
        instruction: &Instruction<'static>,
        before: Option<&Instruction<'static>>,
    ) -> Vec<Instruction<'static>> {
        use Instruction as I;
        let operator = match instruction {
            I::Add => Some("+"),
            I::Mul => Some("*"),
            I::StringConcat => Some("~"),
            I::Eq => Some("=="),
            I::Ne => Some("!="),
            I::Lt => Some("<"),
            I::Lte => Some("<="),
            I::Gt => Some(">"),
            I::Gte => Some(">="),
            I::In => Some("in"),
            _ => None,
        };
        if let Some(name) = operator {
            return vec![self.call(name, Some(2))];
        }
        match instruction {
            I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
            I::ApplyFilter(name, count, _) => vec![self.call(&format!("|{}", plain(name)), *count)],
            I::PerformTest(name, count, _) => vec![self.call(&format!("?{}", plain(name)), *count)],
            I::CallMethod(name, count) => vec![self.call(&format!(".{name}"), *count)],
            I::Slice => vec![self.call("[:", Some(4))],
            I::GetItem if !is_name(before) => vec![self.call("[", Some(2))],
            I::CallFunction(_, Some(1)) => {
                // may be a loop, which walks its argument
                vec![
                    self.call("@", Some(1)),
                    instruction.clone(),
                    self.call("$", Some(1)),
                ]
            }
            I::CallFunction(..)
            | I::CallObject(_)
            | I::EndCapture
            | I::BuildList(_)
            | I::BuildMap(_) => vec![instruction.clone(), self.call("$", Some(1))],
            I::PushLoop(_) | I::FastRecurse => vec![self.call("@", Some(1)), instruction.clone()],
            I::SetAttr(_) => vec![
                I::Swap,
                self.call("=", Some(1)),
                I::Swap,
                instruction.clone(),
            ],
            I::BuildMacro(..) => vec![instruction.clone(), self.call("#", Some(1))],
            I::UnpackLists(count) => vec![
                I::BuildList(Some(*count)),
                self.call("**", Some(1)),
                I::UnpackLists(1),
            ],
            I::MergeKwargs(count) => vec![
                I::BuildList(Some(*count)),
                self.call("***", Some(1)),
                I::MergeKwargs(1),
            ],
            I::CompareAndPreserve(_) => {
                self.chained = true;
                vec![
                    self.call("&", Some(2)),
                    I::UnpackList(2),
                    instruction.clone(),
                ]
            }
            I::CallBlock(_) => vec![
                self.call("{", Some(0)),
                I::DiscardTop,
                instruction.clone(),
                self.call("}", Some(0)),
                I::DiscardTop,
            ],
            I::Include(_) | I::LoadBlocks => vec![self.call("!", Some(1))],
            other => vec![other.clone()],
        }
    }
}

/// Whether a subscript is a name, which costs nothing to look up.
fn is_name(subscript: Option<&Instruction>) -> bool {
    matches!(subscript, Some(Instruction::LoadConst(value)) if value.as_str().is_some())
}

/// A filter's or test's name without the spaces that the parser leaves in it.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace()).collect()
}
