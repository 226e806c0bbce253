//! What a figure found, in a line that `cargo xtask lab figures` recognises: `FIGURE ` and JSON.

use serde_json::{Value, json};

/// What was measured in one case: facts by their names, which say the unit.
#[derive(Debug)]
pub struct Case {
    figure: &'static str,
    case: String,
    facts: Vec<(String, Value)>,
}

impl Case {
    /// A case of a figure.
    pub fn new(figure: &'static str, case: &str) -> Self {
        Self { figure, case: case.to_owned(), facts: Vec::new() }
    }

    /// Adds a fact.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.push((name.to_owned(), value.into()));
    }

    /// Says it.
    pub fn say(self) {
        let Self { figure, case, facts } = self;
        println!("FIGURE {}", json!({ "figure": figure, "case": case, "facts": facts }));
    }
}
