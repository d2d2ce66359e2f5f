"""Templates for the tests: well-known formats in our own words, pieces of the language, and bombs."""

# ruff: noqa: E501  (a template stands in one line)

from __future__ import annotations

FAMOUS = {
    "llama-2": """
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set rest, preface = messages[1:], '<<SYS>>\\n' ~ messages[0]['content'] ~ '\\n<</SYS>>\\n\\n' -%}
{%- else -%}
  {%- set rest, preface = messages, '' -%}
{%- endif -%}
{%- for turn in rest -%}
  {%- if (turn.role == 'user') != (loop.index0 is even) -%}
    {{ raise_exception('user and assistant must take turns') }}
  {%- elif turn.role == 'user' -%}
    {{- bos_token ~ '[INST] ' ~ ((preface if loop.first else '') ~ turn.content).strip() ~ ' [/INST]' -}}
  {%- elif turn.role == 'assistant' -%}
    {{- ' ' ~ turn.content.strip() ~ ' ' ~ eos_token -}}
  {%- endif -%}
{%- endfor -%}
""",
    "mistral": """
{%- set ns = namespace(system='', pairs=0) -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endfor -%}
{{- bos_token -}}
{%- for m in messages | rejectattr('role', 'equalto', 'system') -%}
  {%- if m.role == 'user' -%}
    {%- set ns.pairs = ns.pairs + 1 -%}
    {%- if tools and loop.last -%}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif -%}
    {{- '[INST] ' + (ns.system + '\\n\\n' if ns.system and loop.last else '') + m['content'] + '[/INST]' -}}
  {%- elif m.tool_calls is defined and m.tool_calls is not none -%}
    {{- '[TOOL_CALLS] [' -}}
    {%- for call in m.tool_calls -%}
      {{- call.function | tojson }}{{ ', ' if not loop.last else ']' + eos_token -}}
    {%- endfor -%}
  {%- elif m.role == 'assistant' -%}
    {{- ' ' + m['content'] | trim + eos_token -}}
  {%- elif m.role == 'tool' -%}
    {{- '[TOOL_RESULTS] ' ~ {'content': m.content, 'call_id': m.tool_call_id} | tojson ~ '[/TOOL_RESULTS]' -}}
  {%- else -%}{{ raise_exception('unknown role ' + m.role) }}{%- endif -%}
{%- endfor -%}
""",
    "zephyr": """
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    "chatml": """
{%- for m in messages -%}
  {%- if loop.first and m.role != 'system' -%}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif -%}
  {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
""",
    "tulu": """
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{ '<|system|>\\n' + m.content + '\\n' }}
  {%- elif m.role == 'user' -%}{{ '<|user|>\\n' + m.content + '\\n' }}
  {%- elif m.role == 'assistant' -%}
    {{- '<|assistant|>\\n' + m.content + eos_token + ('' if loop.last else '\\n') -}}
  {%- endif -%}
  {%- if loop.last and add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
{%- endfor -%}
""",
}

LANGUAGE = [
    "{{ messages[0] | tojson }}|{{ messages | tojson(indent=2) }}|{{ messages[0] | tojson(sort_keys=true) }}",
    "{{ value | tojson(true, 1) }}{{ value | tojson(separators=(',', ':')) }}{{ odd | tojson(ensure_ascii=true) }}",
    "{{ value | tojson(indent='\\t') }}{{ [] | tojson(indent=2) }}{{ {'a': {}, 1: none} | tojson(indent=0) }}",
    "{{ value | tojson }} {{ value }} {{ [1, 2.5, true, none, 'a\\'b'] }} {{ {'k': 'v'} }}",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for i in range(6) %}{% if i % 2 %}{% continue %}{% endif %}{{ i }}{{ loop.last }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% generation %}\n  a\n{% endgeneration %}\nb {%- generation -%} c {%- endgeneration %}",
    "{{ messages[0]['content'].strip().split('2')[-1].upper() }} {{ messages[0].content[1:-1] }}",
    "{{ strftime_now('%Y') }} {{ undefined_name }}|{{ messages[9] is defined }}",
    "{% macro f(x, y='d') -%} <{{ x }}{{ y }}> {%- endmacro %}{{ f('y') + f(y=1, x=2) }}\n    {% if true %}\n  z\n    {% endif %}\n",
    "{{ raise_exception('no') }}",
    "[{{ odd.strip() }}|{{ odd | trim }}|{{ odd.lstrip() }}|{{ odd.rstrip() }}|{{ odd.strip('\\n\\x1c ') }}]",
    "{{ odd.split() }}{{ odd.split(' ', 1) }}{{ odd.split(none, 1) }}{{ odd.rsplit(' ', 1) }}{{ odd.rsplit() }}",
    "{{ odd.splitlines() }}{{ odd.splitlines(true) }}{{ 'a\\r\\n\\rb\\n'.splitlines() }}{{ ''.splitlines() }}",
    "{{ 'ab'.find('b') }}{{ 'éab'.find('b') }}{{ 'aXbX'.rfind('X') }}{{ 'a'.find('z') }}{{ 'aab'.count('a') }}",
    "{{ 'hello world'.title() }}{{ 'hELLO'.capitalize() }}{{ 'x'.isspace() }}{{ ' '.isspace() }}{{ ''.isspace() }}",
    "{{ 'abc'.replace('b', 'x') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'abc'.startswith(('x', 'a')) }}",
    "{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ ', '.join(['a', 'b']) }}{{ 'abc'.endswith('c') }}",
    "{{ value.get('none', 5) }}{{ value.get('int') }}{% for k, v in value.items() %}{{ k }}{% endfor %}",
    "{{ value.keys() | list }}{{ value.values() | list | length }}{{ 'int' in value }}{{ value.int is number }}",
    "{{ 'a' ~ 1 ~ true ~ none ~ 1.0 ~ [1] }}{{ 'ab' * 3 }}{{ [1] + [2] }}{{ 7 // 2 }}{{ 7 / 2 }}{{ 2 ** 5 }}{{ -7 % 3 }}",
    "{{ messages[::-1] | length }}{{ [1, 2, 3][-2:] }}{{ [1, 2, 3][:-1] }}{{ 'abc'[::-1] }}{{ [1, 2, 3, 4][1:3] }}",
    "{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ 'z' not in 'abc' }}{{ 1 in [1] }}{{ 'a' == 'a' and not false or none }}",
    "{{ x is defined }}{{ none is none }}{{ 'a' is string }}{{ [] is iterable }}{{ {} is mapping }}{{ 1 is sequence }}",
    "{{ (messages | first).role }}{{ (messages | last).content }}{{ [3, 1, 2] | sort }}{{ ['a', 'b'] | join('-') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | map(attribute='role') | list }}",
    "{{ none | default('d') }}{{ y | default('d') }}{{ '' | default('d', true) }}{{ 'a' if false }}{{ 'b' | upper }}",
    "{% set t %}x {{ odd | trim }} y{% endset %}{{ t | length }}{{ t }}{% set a, b = 1, 2 %}{{ a + b }}",
    "{% for a in [1, 2] %}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.index }}{{ loop.revindex0 }}{% else %}e{% endfor %}",
    "{% macro outer() %}{{ caller() }}{% endmacro %}{% call outer() %}c{% endcall %}{% filter upper %}f{% endfilter %}",
    "{{ 1e300 * 1e10 }}{{ 0.1 + 0.2 }}{{ 100000000000000000000 }}{{ 1.5 | int }}{{ '3' | int }}{{ 2.5 | round }}{{ 0.125 | round(2) }}{{ 1.2 | round(0, 'ceil') }}{{ 3 | round }}",
    "{{ '%s' }}{{ \"\\u00e9\" }}{{ '<&>' | e }}{{ '<' | safe }}{{ odd }}{{ [odd] }}{{ {'a': odd} | string }}",
    "{%- set ns = namespace(a=[]) -%}{%- set ns.a = ns.a + ['x'] -%}{{- ns.a -}}{% with z = 1 %}{{ z }}{% endwith %}",
]

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}"
END = "{% endfor %}{% endfor %}"
GROW = "{% set ns = namespace(s='ab', l=[1]) %}{% for i in range(60) %}"

BOMBS = [
    "{{ 'a' * 1000000000 }}",
    "{{ messages[0].content * 1000000 }}",
    "{{ [1] * 100000000 }}",
    f"{LOOP}{END}",
    f"{LOOP}x{END}",
    f"{LOOP}{'long text ' * 1000}{END}",
    f"{LOOP}{{{{ messages[0].content }}}}{END}",
    GROW + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    GROW + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    GROW + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    GROW + "{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    GROW + "{% set ns.s = ns.s | replace('a', ns.s * 100) %}{% endfor %}",
    GROW + "{% set ns.s = [ns.s, ns.s] | join(ns.s) %}{% endfor %}",
    GROW + "{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% endfor %}",
    GROW + "{% set ns.s = ns.s | list | join('xxxx') %}{% endfor %}",
    GROW + "{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l | length }}",
    GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    GROW + "{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l | tojson }}",
    GROW + "{% set ns.l = dict(a=ns.l, b=ns.l) %}{% endfor %}{{ ns.l == ns.l }}",
    "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + [range(99999) | list] %}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me }}{{ ns }}{{ ns.me | tojson }}",
    "{{ 'a' | indent(1000000000) }}{{ 'a\\nb' | indent(1000000000, true) }}",
    "{{ 'a b' | tojson(indent=1000000000) }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ [1] | slice(1000000000, 'x') | list }}",
    "{{ '{:>1000000000}'.format('a') }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ range(1000000000) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}",
    "{% for a in [[]] recursive %}{{ loop([a]) }}{% endfor %}",
    "{% include '/etc/hostname' %}",
    "{% import '/etc/hostname' as x %}{{ x }}",
    "{% extends '/etc/hostname' %}",
    "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if true %}" * 5000 + "{% endif %}" * 5000,
]
