//! Templates that would overflow the stack, fill the memory or never end are refused in words, on a small stack.

use std::sync::LazyLock;
use std::thread;

use pyprefopt_core::message::Message;
use pyprefopt_core::template::{ChatTemplate, Options};

/// A thread of Python's has as little on some systems; a debug build's frames are some times as large.
const STACK: usize = if cfg!(debug_assertions) {
    2 << 20
} else {
    1 << 19
};
const LONG: usize = 100_000;

static MESSAGE: LazyLock<Message> =
    LazyLock::new(|| Message::new("user", "a question of some words"));

/// What a template makes of one message, or why not.
fn render(source: &str) -> Result<String, String> {
    thread::scope(|scope| {
        let work = || {
            let template = ChatTemplate::new(source, "{}", 0, None)?;
            let message = MESSAGE.to_value()?;
            template.render(&[message], false, &Options::default())
        };
        let thread = thread::Builder::new().stack_size(STACK);
        let result = thread.spawn_scoped(scope, work).expect("a thread starts");
        result.join().expect("no panic")
    })
    .map_err(|error| error.to_string())
}

fn assert_refused(name: &str, source: &str, rule: &str) {
    let error = render(source).expect_err(name);
    assert!(error.contains(rule), "{name}: {error}");
}

#[test]
fn chains_and_nests_are_bounded_before_they_are_parsed() {
    let chain = |start: &str, link: &str| format!("{{{{ {start}{} }}}}", link.repeat(LONG / 2));
    let nest = |open: &str, close: &str| {
        format!(
            "{{{{ {}1{} }}}}",
            open.repeat(LONG / 4),
            close.repeat(LONG / 4)
        )
    };
    let blocks =
        |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let sources = [
        ("sum", chain("1", "+1")),
        ("difference", chain("x", "-1")),
        ("product", chain("x", "*1")),
        ("power", chain("x", "**1")),
        ("text", chain("'a'", "~'a'")),
        ("filters", chain("x", "|trim")),
        ("tests", chain("x", " is none")),
        ("attributes", chain("x", ".b")),
        ("items", chain("x", "[0]")),
        ("slices", chain("x", "[:]")),
        ("calls", chain("x", "()")),
        ("and", chain("x", " and x")),
        ("or", chain("x", " or x")),
        ("not", chain("", "not ").replace(" }}", " x }}")),
        ("minus", chain("", "- ").replace(" }}", " 1 }}")),
        ("comparisons", chain("1", "<1")),
        ("in", chain("x", " in x")),
        ("if", chain("1", " if x")),
        ("else", chain("1", " if x else 1")),
        ("lists", nest("[", "]")),
        ("mappings", nest("{1:", "}")),
        ("parentheses", nest("(", ")")),
        ("arguments", nest("f(", ")")),
        ("subscripts", nest("x[", "]")),
        (
            "targets",
            format!("{{% set {}a{} = 1 %}}", "(".repeat(LONG), ")".repeat(LONG)),
        ),
        ("open", format!("{{{{ {}", "(".repeat(LONG))),
        (
            "elif",
            format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(10_000)),
        ),
        ("bytes", "x".repeat((1 << 20) + 1)),
        ("words", "{{ x }}".repeat(40_000)),
        ("keywords", format!("{{{{ dict({}) }}}}", keywords(10_000))),
        (
            "parameters",
            format!("{{% macro f({}) %}}{{% endmacro %}}", keywords(10_000)),
        ),
    ];
    for (name, source) in &sources {
        assert_refused(name, source, " than ");
    }
    for (name, source) in [
        ("nested if", blocks("{% if x %}", "{% endif %}")),
        ("nested for", blocks("{% for x in y %}", "{% endfor %}")),
        ("nested with", blocks("{% with %}", "{% endwith %}")),
        ("nested set", blocks("{% set x %}", "{% endset %}")),
    ] {
        assert_refused(name, &source, "maximum recursion");
    }
}

fn keywords(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|i| format!("a{i}=1")).collect();
    names.join(", ")
}

/// Chains just below the bound are parsed, compiled and run.
#[test]
fn what_is_within_the_bounds_renders() {
    for (start, link, count) in [
        ("1", "+1", 490),
        ("'a'", "~'a'", 490),
        ("'a'", "|trim", 490),
        ("1", " if 1 else 1", 240),
        ("1", " and 1", 490),
        ("1", "<2", 490),
        ("[1]", "[:]", 490),
    ] {
        let source = format!("{{{{ {start}{} }}}}", link.repeat(count));
        assert!(render(&source).is_ok(), "{link}: {:?}", render(&source));
    }
    let not = format!("{{{{ {}true }}}}", "not ".repeat(900));
    assert_eq!(render(&not).as_deref(), Ok("True"));
    let branches = format!(
        "{{% if 0 %}}{}{{% else %}}b{{% endif %}}",
        "{% elif 0 %}a".repeat(900)
    );
    assert_eq!(render(&branches).as_deref(), Ok("b"));
    let nest = format!("{{{{ {}1{} }}}}", "(".repeat(70), ")".repeat(70));
    assert_eq!(render(&nest).as_deref(), Ok("1"));
    let long = format!(
        "{{% set names = [{}] %}}{{{{ names|length }}}}",
        "'a', ".repeat(30_000)
    );
    assert_eq!(render(&long).as_deref(), Ok("30000"));
    let text = "a".repeat(1_000_000);
    assert_eq!(render(&text), Ok(text));
}

#[test]
fn values_without_an_end_are_refused() {
    let set = "{% set ns = namespace() %}{% set ns.a = ns %}";
    for tail in [
        "",
        "{{ ns == ns }}",
        "{{ ns }}",
        "{{ ns|tojson }}",
        "{{ [ns, ns]|sort }}",
        "{{ {ns: 1} }}",
    ] {
        assert_refused(tail, &format!("{set}{tail}"), "may not hold a namespace");
    }
    for source in [
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = [{'k': b}] %}",
        "{% set a = namespace() %}{% set a.x = (a, 1) %}",
        "{% set a = namespace() %}{% set b = namespace(x=a) %}",
        "{% set ns = namespace() %}{% for x in [ns] %}{% set ns.l = loop %}{% endfor %}",
        "{% for x in [1] %}{% set l = [loop] %}{% endfor %}",
    ] {
        assert_refused(source, source, "hold a");
    }
    for source in [
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x={}) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = dict(a=ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x]|batch(1)|list %}{% endfor %}",
    ] {
        assert_refused(source, source, "deeper than 64");
    }
    // lists of lists that are made lazily have an end too
    for change in [
        "ns.x[:]",
        "ns.x * 1",
        "ns.x + []",
        "ns.x|reverse",
        "ns.x|chain([])",
        "ns.x|list",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(20000) %}}{{% set ns.x = {change} %}}{{% endfor %}}{{{{ ns.x }}}}"
        );
        assert_eq!(render(&source).as_deref(), Ok("[1]"), "{change}");
    }
}

/// Each doubles, repeats, walks or calls without an end.
const ENDLESS: [&str; 58] = [
    "{{ [1] * 100000000 }}",
    "{{ ([1] * 100000000) == ([1] * 100000000) }}",
    "{{ ([1] * 1000000000000)|length }}",
    "{{ ('a' * 60000000) * 60000000 }}",
    "{{ 'a' * 60000000 ~ 'a' * 60000000 }}",
    "{{ [] * 100000000000000 }}",
    "{{ 2 in [1] * 1000000000 }}",
    "{{ (range(100000) | list) * 10000 }}",
    "{{ (range(100000) * 10000) | sum }}",
    "{{ (range(100000) * 10000) | max }}",
    "{{ (range(100000) * 10000) | min }}",
    "{{ (range(100000) * 10000) | sort }}",
    "{{ (range(100000) * 10000) | unique | list }}",
    "{{ (range(100000) * 10000) | join(',') }}",
    "{{ (range(100000) * 10000) == (range(100000) * 10000) }}",
    "{{ -1 in range(100000) * 10000 }}",
    "{{ range(1000000000) | sum }}",
    "{{ range(0, -9223372036854775808, -9223372036854775808) }}{{ range(9223372036854775807, -9223372036854775808, -1) }}",
    "{{ 'a'|indent(100000000000) }}",
    "{{ 'a'|center(100000000000) }}",
    "{{ 'a'.center(100000000000) }}",
    "{{ '%100000000000d'|format(1) }}",
    "{{ '%70000s'|format(1) }}",
    "{{ '{:>100000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 100000000000) }}",
    "{{ 'a'|batch(100000000000, 1) }}",
    "{{ 'a'|batch(100000000000, fill_with=1) }}",
    "{{ 'a'|slice(100000000000) }}",
    "{{ [1]|tojson(indent=100000000000) }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x * 2 %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "{% set ns = namespace(x=messages[0].content) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set x = 'ab' * 10000000 %}{{ [x] * 1000000 }}",
    "{% set x = 'ab' * 10000000 %}{{ ([x] * 1000000)|join }}",
    "{% set x = 'ab' * 10000000 %}{{ ([x] * 1000000)|string }}",
    "{% set x = 'ab' * 10000000 %}{{ ([x] * 1000000)|upper }}",
    "{% set x = 'ab' * 10000000 %}{{ ([x] * 1000000)|sort }}",
    "{% set x = 'ab' * 10000000 %}{{ raise_exception([x] * 1000000) }}",
    "{% set x = 'ab' * 10000000 %}{% for i in range(100000) %}{% if x == x ~ '' %}{% endif %}{% endfor %}",
    "{% set x = 'ab' * 10000000 %}{% for i in range(100000) %}{% if 'c' in x %}{% endif %}{% endfor %}",
    "{% set x = 'ab' * 10000000 %}{% for i in range(100000) %}{% if x[-1] %}{% endif %}{% endfor %}",
    "{% set x = 'ab' * 10000000 %}{% for i in range(100000) %}{% for c in x %}{% break %}{% endfor %}{% endfor %}",
    "{% set x = 'ab' * 10000000 %}{% for i in range(100000) %}{% if x|length %}{% endif %}{% endfor %}",
    "{% set x = 'ab' * 10000000 %}{% for i in range(100000) %}{% if x.startswith('b') or x.count('c') %}{% endif %}{% endfor %}",
    "{% set x = [1] * 1000000 %}{% for i in range(100000) %}{% if x == x + [] %}{% endif %}{% endfor %}",
    "{% set x = [1] * 1000000 %}{% for i in range(100000) %}{% if 1 < x == x + [] %}{% endif %}{% if x == x[:] == x %}{% endif %}{% endfor %}",
    "{% set x = [1] * 1000000 %}{% macro f() %}{{ varargs }}{% endmacro %}{% for i in range(100000) %}{% if [1]|zip(*x) %}{% endif %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% macro f() %}{% endmacro %}{% endfor %}",
];

#[test]
fn work_and_memory_are_bounded() {
    for source in ENDLESS {
        let error = render(source).expect_err(source);
        let unknown = source.contains("center"); // the reference's, whose memory is bounded too
        assert!(error.contains("more than") || unknown, "{source}: {error}");
    }
}

/// What a template does with contents is followed within the same bounds.
#[test]
fn learning_is_bounded() {
    let content = "{% set ns = namespace(x=messages[0].content, y='') %}";
    for change in [
        "{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% for i in range(100000) %}{% if ns.x == i|string %}{% endif %}{% endfor %}",
        "{% set x = [ns.x] * 100000 %}{% for i in range(100000) %}{% if x == 1 %}{% endif %}{% endfor %}",
    ] {
        let template =
            ChatTemplate::new(&format!("{content}{change}"), "{}", 0, None).expect("compiles");
        assert!(template.shape(&[&MESSAGE, &MESSAGE]).is_none(), "{change}");
    }
}

#[test]
fn recursion_is_bounded() {
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f(1) %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ [[1]]|map('map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'map', 'list') }}",
        "{{ include('x') }}{% include 'x' %}",
        "{% include ['x', 'y'] ignore missing %}",
        "{% extends 'x' %}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
    let mut nested = "1".to_string();
    for _ in 0..40 {
        nested = format!("[{nested}]");
    }
    assert!(render(&format!("{{{{ {nested} }}}}")).is_ok());
}

#[test]
fn faults_of_arithmetic_are_refused() {
    for source in [
        "{{ 5 is divisibleby(0) }}",
        "{{ 5 is divisibleby 0 }}",
        "{{ 5 % 0 }}",
        "{{ 5 // 0 }}",
        "{% for x in [1] %}{{ loop.cycle() }}{% endfor %}",
        "{{ 10 ** 100 }}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
    assert_eq!(render("{{ 'abc'.count('') }}").as_deref(), Ok("4"));
    assert_eq!(render("{{ 'abcab'.count('ab') }}").as_deref(), Ok("2"));
    assert_eq!(render("{{ [1, 2, 3][0:2:-1] }}").as_deref(), Ok("[]"));
    assert_eq!(
        render("{{ 'abc'[::-1] }}{{ 'abc'[-9223372036854775807:] }}").as_deref(),
        Ok("cbaabc")
    );
    assert_eq!(
        render("{{ range(3, 0, -1)|list }}").as_deref(),
        Ok("[3, 2, 1]")
    );
    assert_eq!(
        render("{{ '{} {}'.format('call 5551234567', 1) }}").as_deref(),
        Ok("call 5551234567 1")
    );
}
