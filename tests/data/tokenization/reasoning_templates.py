"""Templates in the shapes of today's open models that reason, in our own words."""

# ruff: noqa: E501  (a template stands in one line)

_R1_TURNS = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}{% else %}{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}<Assistant>{{ c }}{{ eos_token }}{% endif %}{% endfor %}"
_PARSED = "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for m in messages -%}{%- set r, c = '', m.content -%}{%- if m.reasoning_content is string -%}{%- set r = m.reasoning_content -%}{%- elif '</think>' in c -%}{%- set r = c.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"

REASONING = {
    "deepseek-r1": _R1_TURNS + "{% if add_generation_prompt %}<Assistant>{% endif %}",
    "r1-distill": _R1_TURNS + "{% if add_generation_prompt %}<Assistant><think>\n{% endif %}",
    "spelled out": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: <think>{% endif %}",
    "qwq": _PARSED
    + "{{- '<|im_start|>' + m.role + '\\n' + c.lstrip('\\n') + '<|im_end|>\\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}",
    "qwen3": _PARSED
    + "{{- '<|im_start|>' + m.role + '\\n' -}}{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or r) -%}{{- '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' + c.lstrip('\\n') -}}{%- else -%}{{- c -}}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}",
    "qwen3-thinking": _PARSED
    + "{{- '<|im_start|>' + m.role + '\\n' -}}{%- if m.role == 'assistant' and loop.index0 > ns.last -%}{{- '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' + c.lstrip('\\n') -}}{%- else -%}{{- c -}}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}",
    "glm-4.5": _PARSED
    + "{{- '<|' + m.role + '|>' -}}{%- if m.role == 'assistant' -%}{{- '\\n<think>' + (r.strip() if loop.index0 > ns.last else '') + '</think>' -}}{%- endif -%}{{- '\\n' + c.strip() -}}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}",
    "minimax-m2": _PARSED
    + "{{- ']~b]' + ('ai' if m.role == 'assistant' else m.role) + '\\n' -}}{%- if r and loop.index0 > ns.last -%}{{- '<think>\\n' + r + '\\n</think>\\n\\n' -}}{%- endif -%}{{- c + '[e~[\\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{ ']~b]ai\\n<think>\\n' }}{%- endif -%}",
    "smollm3": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{{ m.content.lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "nemotron": "{% for m in messages %}{% set c = m.content %}{% if m.reasoning_content %}{% set c = '<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n' ~ c %}{% elif m.role == 'assistant' and '</think>' not in c %}{% set c = '<think></think>' ~ c %}{% endif %}<|im_start|>{{ m.role }}\n{{ c | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "harmony": "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "always thinking": "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>\n{% endif %}{{ m.content }}</{{ m.role }}>\n{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}",
    "own block": "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}</{{ m.role }}>\n{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}",
    "mistral": "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "gemma": "{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{% if m.role == 'assistant' %}{% if m.tool_calls and m.reasoning_content %}<|channel>thought\n{{ m.reasoning_content }}\n<channel|>{% endif %}{{ m.content.split('<channel|>')[-1] | trim }}{% else %}{{ m.content | trim }}{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}",
}

_END = "</{{ m.role }}>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
_CALLS = "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}!{% endfor %}" + _END
CALLING = {
    "plain": "{% for m in messages %}<{{ m.role }}>" + _CALLS,
    "thinking": "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    + _CALLS,
    "of null": "{% for m in messages %}<{{ m.role }}>{% if m.content is none %}{{ m.tool_calls[0].function.name }}!{% else %}{{ m.content }}{% endif %}"
    + _END,
}
TRIMMING = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}" + _END
