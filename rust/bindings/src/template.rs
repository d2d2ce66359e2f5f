use pyo3::prelude::*;
use pyprefopt_core::template::{ChatTemplate, Options, parse_messages, to_json_object};

use crate::error::to_py;

pub fn render(
    template: &ChatTemplate,
    messages: &str,
    add_generation_prompt: bool,
    tools: Option<&str>,
    template_kwargs: Option<&str>,
) -> pyprefopt_core::Result<String> {
    let options = Options::parse(tools, template_kwargs)?;
    template.render(&parse_messages(messages)?, add_generation_prompt, &options)
}

/// Render one chat (a JSON list of messages) by a template's source.
#[pyfunction]
#[pyo3(signature = (chat_template, messages, *, special_tokens, add_generation_prompt, tools = None, template_kwargs = None, now = 0))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // the options of a rendering, converted by PyO3
fn render_chat(
    py: Python<'_>,
    chat_template: &str,
    messages: &str,
    special_tokens: Vec<(String, String)>,
    add_generation_prompt: bool,
    tools: Option<&str>,
    template_kwargs: Option<&str>,
    now: i64,
) -> PyResult<String> {
    py.detach(|| {
        let template = ChatTemplate::new(chat_template, &to_json_object(&special_tokens), now)?;
        render(
            &template,
            messages,
            add_generation_prompt,
            tools,
            template_kwargs,
        )
    })
    .map_err(to_py)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(render_chat, module)?)
}
