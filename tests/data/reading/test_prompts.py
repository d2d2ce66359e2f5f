"""A prompt beside chats that hold it, transcripts that end where the answer begins, and turns that go on."""

from __future__ import annotations

import json

import pytest

from pyprefopt.data.reading.frames import scan_candidates, scan_instructions, scan_preferences


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def scan(tmp_path, row, how=scan_preferences):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return how(path)


def turns(result, name="prompt"):
    return [(message["role"], message["content"]) for message in result.frame[name][0]]


def whole(*before):
    """Both sides as whole chats behind these messages."""
    return {side: [*before, assistant(text)] for side, text in (("chosen", "good"), ("rejected", "bad"))}


ASKED = {
    "text": {"prompt": "Q"},
    "text, with space": {"prompt": " Q\n"},
    "messages": {"prompt": [user("Q")]},
    "one message": {"prompt": user("Q")},
    "conversations": {"conversations": [{"from": "human", "value": "Q"}]},
    "instruction": {"instruction": "Q", "input": ""},
    "nothing": {"prompt": ""},
    "transcript": {"prompt": "\n\nHuman: Q\n\nAssistant:"},
}
SYSTEMS = {
    "in none": ({}, []),
    "in the chats": ({}, [system("S")]),
    "a field": ({"system": "S"}, []),
    "a field, and in the chats": ({"system": "S"}, [system("S")]),
}


@pytest.mark.parametrize("where", SYSTEMS)
@pytest.mark.parametrize("asked", ASKED)
def test_whole_chats_are_taken_for_what_they_are(tmp_path, asked, where):
    field, before = SYSTEMS[where]
    result = scan(tmp_path, {**ASKED[asked], **field, **whole(*before, user("Q"))})
    assert result.rejects.is_empty()
    assert turns(result) == [("system", "S")] * (where != "in none") + [("user", "Q")]
    assert (turns(result, "chosen"), turns(result, "rejected")) == ([("assistant", "good")], [("assistant", "bad")])


def test_a_system_message_of_the_prompt_is_said_once(tmp_path):
    for before in ([user("Q")], [system("S"), user("Q")]):
        row = {"prompt": [system("S"), user("Q")], **whole(*before)}
        assert turns(scan(tmp_path, row)) == [("system", "S"), ("user", "Q")]


def test_a_text_may_be_the_last_user_turn_or_the_beginning(tmp_path):
    before = [user("a"), assistant("b"), user("Q")]
    for prompt in ("Q", "a"):
        assert len(turns(scan(tmp_path, {"prompt": prompt, **whole(*before)}))) == 3
    assert turns(scan(tmp_path, {"prompt": before, **whole(*before)}))[-1] == ("user", "Q")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "X", **whole(user("Q"))},
        {"prompt": "Q", **whole(user("Q and more"))},
        {"prompt": [user("a"), assistant("x"), user("Q")], **whole(user("a"), assistant("y"), user("Q"))},
        {"prompt": [user("a"), assistant("b"), user("Q")], **whole(user("Q"))},
        {"conversations": [{"from": "human", "value": "X"}], **whole(user("Q"))},
        {"instruction": "Q", "input": "more", **whole(user("Q"))},
        {"prompt": "Q", "chosen": whole(user("X"))["chosen"], "rejected": "bad"},
        {"prompt": "Q", "chosen": [system("S"), assistant("good")], "rejected": [system("S"), assistant("bad")]},
    ],
)
def test_contradictions_are_refused(tmp_path, row):
    rejects = scan(tmp_path, row).rejects
    assert rejects["reason"].to_list() == ["prompt_mismatch"]
    assert rejects["remedy"][0] == "mend the row, or leave one of the two out"


def test_two_system_messages_are_refused(tmp_path):
    for row in (
        {"prompt": [system("T"), user("Q")], **whole(system("S"), user("Q"))},
        {"prompt": "Q", "system": "T", **whole(system("S"), user("Q"))},
    ):
        assert scan(tmp_path, row).rejects["reason"].to_list() == ["two_systems"]


def test_one_side_may_be_whole(tmp_path):
    chats = whole(system("S"), user("Q"))
    for row in ({**chats, "rejected": "bad"}, {**chats, "chosen": [assistant("good")]}):
        result = scan(tmp_path, {"prompt": "Q", **row})
        assert turns(result) == [("system", "S"), ("user", "Q")]
        assert (turns(result, "chosen"), turns(result, "rejected")) == ([("assistant", "good")], [("assistant", "bad")])


def test_the_prompt_says_where_whole_chats_part(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    before = [user("Q"), call, {"role": "tool", "content": "1"}]
    assert turns(scan(tmp_path, {"prompt": "Q", **whole(*before)})) == [("user", "Q")]
    assert len(turns(scan(tmp_path, whole(*before)))) == 3


def test_examples_and_candidates_too(tmp_path):
    chat = whole(system("S"), user("Q"))["chosen"]
    expected = [("system", "S"), ("user", "Q")]
    for name in ("response", "completion"):
        result = scan(tmp_path, {"prompt": "Q", name: chat}, scan_instructions)
        assert (turns(result), turns(result, "response")) == (expected, [("assistant", "good")])
        assert scan(tmp_path, {"prompt": "X", name: chat}, scan_instructions).rejects["reason"][0] == "prompt_mismatch"
    result = scan(tmp_path, {"prompt": "Q", "responses": [chat, "other"]}, scan_candidates)
    assert turns(result) == expected
    assert [len(chat) for chat in result.frame["responses"][0]] == [1, 1]
    row = {"prompt": "Q", "responses": [chat, [user("Q"), assistant("x")]]}
    assert scan(tmp_path, row, scan_candidates).rejects["reason"][0] == "prompt_mismatch"


# -- transcripts

BEGUN = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: Q\n\nAssistant:"
SAID = [("user", "hi"), ("assistant", "hello"), ("user", "Q")]


@pytest.mark.parametrize(
    ("prompt", "form"),
    [
        (BEGUN, " {}"),
        (BEGUN.lstrip(), " {}"),
        (BEGUN, "{}"),
        (BEGUN + " ", "{}"),
        (BEGUN, BEGUN + " {}"),
        (BEGUN[:-12], "\n\nAssistant: {}"),
    ],
)
def test_transcripts_become_turns(tmp_path, prompt, form):
    answers = {"chosen": form.format("good"), "rejected": form.format("bad")}
    result = scan(tmp_path, {"prompt": prompt, **answers})
    assert turns(result) == SAID
    assert (turns(result, "chosen"), turns(result, "rejected")) == ([("assistant", "good")], [("assistant", "bad")])
    example = scan(tmp_path, {"prompt": prompt, "completion": answers["chosen"]}, scan_instructions)
    assert (turns(example), turns(example, "response")) == (SAID, [("assistant", "good")])
    some = scan(tmp_path, {"prompt": prompt, "responses": list(answers.values())}, scan_candidates)
    assert turns(some) == SAID
    assert [chat[0]["content"] for chat in some.frame["responses"][0]] == ["good", "bad"]


@pytest.mark.parametrize("prompt", [BEGUN, BEGUN.lstrip(), BEGUN[:-12]])
def test_instructions_and_histories_are_transcripts_too(tmp_path, prompt):
    answers = {"chosen": " good", "rejected": " bad"} if prompt.endswith(":") else {"chosen": "good", "rejected": "bad"}
    pairs = [
        {"instruction": prompt, **answers},
        {"instruction": prompt, "output": list(answers.values())},
        {"history": prompt, "human_ref_A": answers["rejected"], "human_ref_B": answers["chosen"], "labels": 0},
    ]
    for row in pairs:
        result = scan(tmp_path, row)
        assert turns(result) == SAID
        assert (turns(result, "chosen"), turns(result, "rejected")) == ([("assistant", "good")], [("assistant", "bad")])
    example = scan(tmp_path, {"instruction": prompt, "output": answers["chosen"]}, scan_instructions)
    assert (turns(example), turns(example, "response")) == (SAID, [("assistant", "good")])
    some = scan(tmp_path, {"instruction": prompt, "responses": list(answers.values())}, scan_candidates)
    assert turns(some) == SAID


def test_input_stands_behind_the_users_last_words(tmp_path):
    row = {"instruction": BEGUN, "input": "I", "history": [["a", "b"]], "output": " good"}
    example = scan(tmp_path, row, scan_instructions)
    earlier = [("user", "a"), ("assistant", "b")]
    assert (turns(example), turns(example, "response")) == (
        [*earlier, *SAID[:2], ("user", "Q\n\nI")],
        [("assistant", "good")],
    )
    bad = scan(tmp_path, row | {"instruction": BEGUN + " It is"}, scan_instructions).rejects.row(0, named=True)
    assert (bad["reason"], bad["field"], bad["value"]) == ("not_a_question", "input", "I")


def test_other_texts_with_marks_stay_texts(tmp_path):
    for text in ("Human: Q", "Write\n\nHuman: hi\n\nAssistant:", "Assistant: x"):
        assert turns(scan(tmp_path, {"prompt": text, "chosen": " a", "rejected": "b"})) == [("user", text)]


def test_one_space_belongs_to_the_mark_and_only_there(tmp_path):
    assert turns(scan(tmp_path, {"prompt": BEGUN, "chosen": "  a", "rejected": "b"}), "chosen")[0][1] == " a"
    assert turns(scan(tmp_path, {"prompt": "Q", "chosen": " a", "rejected": "b"}), "chosen")[0][1] == " a"


# -- turns that go on


@pytest.mark.parametrize("answers", [(" 4.", " 5."), ([assistant(" 4.")], [assistant(" 5.")])])
def test_what_the_assistant_began_is_marked(tmp_path, answers):
    row = {"prompt": [user("2+2?"), assistant("The answer is")], "chosen": answers[0], "rejected": answers[1]}
    frame = scan(tmp_path, row).frame
    assert json.loads(frame["prompt"][0][-1]["extra"]) == {"prefix": True}
    assert (frame["prompt"][0][-1]["content"], frame["chosen"][0][0]["content"]) == ("The answer is", " 4.")
    sides = {side: [user("2+2?"), assistant(f"The answer is {n}.")] for side, n in (("chosen", 4), ("rejected", 5))}
    assert scan(tmp_path, {"prompt": row["prompt"], **sides}).frame.equals(frame)
    some = scan(tmp_path, {"prompt": row["prompt"], "responses": [" 4.", " 5."]}, scan_candidates).frame
    assert some["prompt"].equals(frame["prompt"])
    one = scan(tmp_path, {"prompt": row["prompt"], "completion": " 4."}, scan_instructions).frame
    assert one["prompt"].equals(frame["prompt"])


def test_messages_of_a_chat_stay_messages(tmp_path):
    row = {"messages": [user("q"), assistant("a"), assistant("b")]}
    frame = scan(tmp_path, row, scan_instructions).frame
    assert [message["extra"] for message in frame["prompt"][0]] == [None, None]


def test_a_begun_turn_inside_of_the_prompt_is_one_turn(tmp_path):
    rest = [assistant(" 4."), user("Sure?")]
    sides = {side: [*rest, assistant(text)] for side, text in (("chosen", "Yes."), ("rejected", "No."))}
    result = scan(tmp_path, {"prompt": [user("2+2?"), assistant("The answer is")], **sides})
    assert turns(result) == [("user", "2+2?"), ("assistant", "The answer is 4."), ("user", "Sure?")]
