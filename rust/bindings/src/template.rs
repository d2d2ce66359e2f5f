//! Rendering chats by a template's source.

use pyo3::prelude::*;
use pyprefopt_core::Error;
use pyprefopt_core::template::{ChatTemplate, Options, Reference, parse_messages, to_json_object};

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

/// A Python function as the renderer of what the engine cannot render; it takes the GIL.
pub fn reference(function: Py<PyAny>) -> Reference {
    Box::new(
        move |messages, add_generation_prompt, tools, variables, why| {
            Python::attach(|py| {
                function
                    .bind(py)
                    .call1((messages, add_generation_prompt, tools, variables, why))?
                    .extract::<String>()
            })
            .map_err(|error| Error::Argument(Python::attach(|py| error.value(py).to_string())))
        },
    )
}

/// Render one chat (a JSON list of messages) by a template's source.
#[pyfunction]
#[pyo3(signature = (chat_template, messages, *, special_tokens, add_generation_prompt, tools = None, template_kwargs = None, now = 0, reference = None))]
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
    reference: Option<Py<PyAny>>,
) -> PyResult<String> {
    let reference = reference.map(self::reference);
    py.detach(|| {
        let template = ChatTemplate::new(
            chat_template,
            &to_json_object(&special_tokens),
            now,
            reference,
        )?;
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
