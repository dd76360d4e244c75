"""A suite of one's own: drafted, shown as it is sent, and what a model can be measured by it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import run
from test_plan import BOS, make_tokenizer

from crystalmon.scoring.models import load_tokenizer
from crystalmon.scoring.plan import render_suite
from crystalmon.suites.draft import draft_suite
from crystalmon.suites.imported import LONGEST_ANSWER, import_suite, suite_text
from crystalmon.suites.tasks import Choice, Task, TaskSuite, load_suite

QUESTION = "Is the answer correct?"


def new(capsys, file, *more, question=QUESTION, answers=("yes", "no")):
    given = ["suite", "new", str(file), "--question", question, "--answers", *answers]
    return run(capsys, *given, *more)


def write(tmp_path, **prompts):
    """A suite file with a task of coins for each list of prompts."""
    coin = {"choices": ["heads", "tails"]}
    tasks = [coin | {"name": name, "prompts": list(each)} for name, each in prompts.items()]
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({"name": "own", "tasks": tasks}))
    return str(file)


# --- new -------------------------------------------------------------------------------------


def test_a_drafted_file_is_a_suite_at_once(capsys, tmp_path):
    file = tmp_path / "judge.yaml"
    status, out, _ = new(capsys, file)
    assert status == 0
    assert f"crystalmon suite validate {file} --model MODEL" in out
    suite = load_suite(file)
    (task,) = suite
    assert suite.name == task.name == "judge"
    assert task.choice_texts == ("yes", "no")
    assert {"Yes", " Yes", "yes", " yes"} == set(task.choices[0].forms)
    assert len(set(task.prompts)) == len(task.prompts) >= 8
    for prompt in task.prompts:
        assert QUESTION in prompt
        assert prompt == prompt.rstrip(), "a space would be the answer's"
    with_choices = ["yes" in prompt and "no" in prompt for prompt in task.prompts]
    assert 0 < sum(with_choices) < len(with_choices)
    status, out, _ = run(capsys, "suite", "validate", str(file))
    assert status == 0
    assert out.count("warning") == 1
    assert "a judge that always says yes looks perfect where yes is right" in out
    comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert "#   crystalmon suite validate judge.yaml --model MODEL" in comments
    assert max(map(len, comments)) <= 100


def test_questions_given_at_once_are_the_tasks_of_one_suite(capsys, tmp_path):
    file, other = tmp_path / "judge.yaml", "Is a hammer a fruit?"
    assert new(capsys, file, "--question", other)[0] == 0
    suite = load_suite(file)
    assert [task.name for task in suite] == ["judge", "judge-2"]
    for task, question in zip(suite, (QUESTION, other), strict=True):
        assert task.choice_texts == ("yes", "no")
        assert all(question in prompt for prompt in task.prompts)
    assert "warning" not in run(capsys, "suite", "validate", str(file))[1]
    before = file.read_bytes()
    status, _, err = new(capsys, file)
    assert (status, file.read_bytes()) == (2, before)
    assert "Give all questions at once, each with a --question" in err
    status, _, err = new(capsys, tmp_path / "twice.yaml", "--question", QUESTION)
    assert status == 2
    assert "questions" in err


@pytest.mark.parametrize("cue", ["Question: ", "Q:", "question : "])
def test_a_question_with_a_cue_of_its_own_gets_no_second_one(capsys, tmp_path, cue):
    file = tmp_path / "judge.yaml"
    assert new(capsys, file, question=cue + QUESTION)[0] == 0
    (task,) = load_suite(file)
    assert task.prompts[0].startswith(cue + QUESTION), "one wording is as it was given"
    for prompt in task.prompts:
        assert QUESTION in prompt
        assert len(re.findall(r"\b(?:question|q)\W*:", prompt, re.IGNORECASE)) <= 1


def test_a_second_task_is_added_by_taking_its_comment_away(capsys, tmp_path):
    file = tmp_path / "judge.yaml"
    new(capsys, file)
    text = file.read_text()
    assert "# A judge needs two tasks" in text
    first, mark, second = text.partition("  # - name:")
    file.write_text(first + (mark + second).replace("  # ", "  "))
    assert [task.name for task in load_suite(file)] == ["judge", "judge-2"]
    _, out, _ = run(capsys, "suite", "validate", str(file))
    assert "judge that always" not in out


@pytest.mark.parametrize(
    ("choices", "said"),
    [(["False", "True"], 1), (["heads", "tails"], 0), (["yes", "no", "maybe"], 0)],
)
def test_a_judge_of_one_question_is_told_to_ask_another(capsys, tmp_path, choices, said):
    file = tmp_path / "own.yaml"
    task = {"name": "t", "prompts": [f"Q{each}" for each in range(8)], "choices": choices}
    file.write_text(json.dumps({"name": "own", "tasks": [task]}))
    _, out, _ = run(capsys, "suite", "validate", str(file))
    assert out.count("t is the only task") == out.count("Add a task whose right") == said


TEXTS = st.text(min_size=1, max_size=LONGEST_ANSWER).filter(
    lambda text: text.strip() and not any("\ud800" <= each <= "\udfff" for each in text)
)


@settings(max_examples=50, deadline=None)
@given(question=TEXTS, answers=st.lists(TEXTS, min_size=2, max_size=4, unique_by=str.strip))
def test_any_question_and_answers_come_back(tmp_path_factory, question, answers):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(draft_suite(file, [question], answers).encode())
    (task,) = load_suite(file)
    assert task.choice_texts == tuple(answer.strip() for answer in answers)
    assert f"{question.strip()}\nAnswer:" in task.prompts


NASTY = ('Say "it\'s: fine"', "yes: {no} # no", "a\n\n  b\ttab", "né 日本 🙂?",
         "x\x85 \u2028 \ufeff", "\\")  # fmt: skip


@pytest.mark.parametrize("question", NASTY)
def test_a_nasty_question_comes_back_from_the_command(capsys, tmp_path, question):
    file = tmp_path / "own.yml"
    status, _, _ = new(capsys, file, question=question)
    assert status == 0
    assert load_suite(file)["own"].prompts[0] == f"{question}\nAnswer:"


@pytest.mark.parametrize(
    ("name", "question", "answers", "sentence"),
    [
        ("own.yaml", QUESTION, ("yes",), "answers must be at least 2, got 1"),
        ("own.yaml", QUESTION, ("yes", "no", " yes"), "answers must be unique, got 'yes' twice"),
        ("own.yaml", QUESTION, ("yes", " "), "an answer must be a non-blank string"),
        ("own.yaml", " \n", ("yes", "no"), "question must be a non-blank string"),
        ("own.yaml", "\udcff?", ("yes", "no"), "question must be Unicode text"),
        ("none/own.yaml", QUESTION, ("yes", "no"), "is not there"),
        ("own.txt", QUESTION, ("yes", "no"), "must end in .yaml or .yml"),
        ("own", QUESTION, ("yes", "no"), "must end in .yaml or .yml"),
        ("a\nb.yaml", QUESTION, ("yes", "no"), "must have no control characters"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    capsys, tmp_path, name, question, answers, sentence
):
    status, out, err = new(capsys, tmp_path / name, question=question, answers=answers)
    assert status == 2
    assert out == ""
    assert sentence in err
    assert err.startswith("crystalmon: ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_that_is_asked_for(capsys, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("mine")
    status, _, err = new(capsys, file)
    assert status == 2
    assert "is there already" in err
    assert file.read_text() == "mine"
    status, _, _ = new(capsys, file, "--force")
    assert status == 0
    assert load_suite(file).name == "own"


def test_what_cannot_be_written_leaves_nothing(capsys, tmp_path):
    folder = tmp_path / "own.yaml"
    folder.mkdir()
    status, _, err = new(capsys, folder, "--force")
    assert status == 2
    assert "cannot take the suite" in err
    assert list(tmp_path.iterdir()) == [folder]


# --- import ----------------------------------------------------------------------------------

FRUIT = {"prompt": "Name a fruit:", "targets": ["apple", "pear"], "name": "fruit"}


def write_lines(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def take(capsys, source, *more, output="own.yaml"):
    """The command's status and output, and the suite that it has written, if any."""
    file = source.parent / output
    status, out, err = run(capsys, "suite", "import", str(source), "-o", str(file), *more)
    return status, out, err, load_suite(file) if status == 0 else None


def test_rows_become_tasks_and_say_what_they_can_measure(capsys, tmp_path):
    again = {"prompts": ["A fruit:", "Fruit:"], "choices": ["pear", "apple"], "task": "fruit"}
    digit = {"request": "A digit:", "targets": {"1": 0.25, "2": 0.75}, "id": 7}
    plain = {"prompt": "Flip:", "targets": ["heads", "tails"]}
    many = {"prompts": [f"Q{n}:" for n in range(8)], "targets": ["yes", "no"], "name": "many"}
    status, out, _, suite = take(capsys, write_lines(tmp_path, FRUIT, again, digit, plain, many))
    assert status == 0
    assert suite is not None
    assert suite.name == "own"
    assert [task.name for task in suite] == ["fruit", "7", "rows-4", "many"]
    assert suite["fruit"].prompts == ("Name a fruit:", "A fruit:", "Fruit:")
    assert suite["fruit"].choice_texts == ("apple", "pear")
    assert suite["7"].choice_texts == ("1", "2")
    assert "fruit: 2 choices, 3 wordings: wide intervals\n" in out
    assert "7: 2 choices, one wording: entropy and KL only\n" in out
    assert "many: 2 choices, 8 wordings\n" in out
    assert "With one wording there is no liquidity, order or seed" in out
    assert "row 3: its probabilities are dropped" in out
    assert "left out:" not in out
    assert f"crystalmon suite validate {tmp_path / 'own.yaml'} --model MODEL" in out
    status, out, _ = run(capsys, "suite", "validate", str(tmp_path / "own.yaml"))
    assert status == 0


@pytest.mark.parametrize(
    "content",
    [
        {"request": "Name one.", "response": [""], "targets": ["{Apple}", "{Goji Berry}"]},
        [{"prompt": "Name one.", "targets": ["{Apple}", "{Goji Berry}"], "name": "rows"}],
        {"Name one.": {"answers": [["{Apple}"], ["{Goji Berry}"]], "category": "fruit"}},
    ],
    ids=["one row", "a list", "by prompt"],
)
def test_a_file_may_be_a_row_or_a_list_or_a_mapping(capsys, tmp_path, content):
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(content, indent=2), encoding="utf-8-sig")
    _, _, _, suite = take(capsys, source)
    assert suite == TaskSuite(
        "own", (Task("rows", ("Name one.",), (Choice("{Apple}"), Choice("{Goji Berry}"))),)
    )


def test_spellings_of_one_answer_become_its_forms(capsys, tmp_path):
    answers = [["Spain"], ["UAE", "Emirates"], ["Spain"]]
    _, out, _, suite = take(capsys, write_lines(tmp_path, {"prompt": "Q", "answers": answers}))
    assert suite is not None
    (task,) = suite
    assert task.choice_texts == ("Spain", "UAE")
    assert task.choices[1].forms == ("UAE", " UAE", "Emirates", " Emirates")
    assert "row 1: answers that come twice, such as 'Spain', are taken once" in out


def test_rows_of_one_name_and_other_answers_are_told_apart(capsys, tmp_path):
    rows = [FRUIT | {"targets": ["a", each]} for each in "bcd"]
    _, _, _, suite = take(capsys, write_lines(tmp_path, *rows))
    assert suite is not None
    assert [task.name for task in suite] == ["fruit", "fruit-2", "fruit-3"]
    assert [task.choice_texts[1] for task in suite] == ["b", "c", "d"]


LEFT_OUT = {
    "open": ({"prompt": "Tell a story."}, "it lists no answers"),
    "empty": ({"prompt": "Tell a story.", "targets": []}, "it lists no answers"),
    "a text": ({"prompt": "Name one.", "targets": "apple"}, "it lists no answers"),
    "single": (FRUIT | {"targets": ["a"]}, "choices must be at least 2, got 1"),
    "the same twice": (FRUIT | {"targets": ["a", " a"]}, "choices must be at least 2, got 1"),
    "duplicate": (FRUIT | {"targets": [["a", "b"], "b"]}, "form 'b' is shared by choices"),
    "long answer": (FRUIT | {"targets": ["a", "b" * 101]}, "an answer is too long, 101 char"),
    "long prompt": (FRUIT | {"prompt": "a" * 8001}, "a prompt is too long, 8001 characters"),
    "no prompt": ({"targets": ["a", "b"]}, "it has no prompt"),
    "messages": (FRUIT | {"prompt": [{"role": "user"}]}, "a prompt must be a text, got {'role'"),
    "a flag": (FRUIT | {"targets": [True, False]}, "an answer must be a text or a number, got T"),
    "no number": ('{"prompt": "Name one.", "targets": [1, NaN]}', "or a number, got nan"),
    "endless": (FRUIT | {"targets": [1, -math.inf]}, "or a number, got -inf"),
    "half a pair": (FRUIT | {"prompt": "\ud800"}, "must be Unicode text"),
    "a number": ("7", "it must be a mapping, got 7"),
    "torn": ('{"prompt": "Na', "it is not JSON"),
    "asked already": (FRUIT, "task 'fruit' has its prompts already"),
}


@pytest.mark.parametrize(("row", "why"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_cannot_be_taken_is_told_with_its_row_and_the_rest_is_taken(
    capsys, tmp_path, row, why
):
    source = write_lines(tmp_path, FRUIT, "", row)
    status, out, _, suite = take(capsys, source)
    assert status == 0
    assert suite is not None
    assert [task.prompts for task in suite] == [("Name a fruit:",)]
    assert "left out:\n  row 3: " in out
    assert why in out
    _, out, _, _ = take(capsys, source, "--json", "--force")
    found = json.loads(out)
    assert found["tasks"] == [{"name": "fruit", "wordings": 1, "choices": 2}]
    assert [(each["row"], each["taken"]) for each in found["remarks"]] == [(3, False)]


@pytest.mark.parametrize("name", [True, 1.5, ["fruit"]])
def test_a_row_whose_name_is_none_is_called_after_the_file(capsys, tmp_path, name):
    _, out, _, suite = take(capsys, write_lines(tmp_path, FRUIT, FRUIT | {"name": name}))
    assert suite is not None
    assert [task.name for task in suite] == ["fruit", "rows-2"]
    assert f"row 2: its name is no text or number but {name!r}: it is 'rows-2'." in out


def test_many_rows_that_are_left_out_do_not_fill_the_screen(capsys, tmp_path):
    _, out, _, _ = take(capsys, write_lines(tmp_path, FRUIT, *[{"prompt": "Tell."}] * 1000))
    assert out.count("  row ") == 10
    assert "  and 990 more\n" in out


@pytest.mark.parametrize(
    ("content", "output", "sentence"),
    [
        (json.dumps([{"prompt": "Tell."}] * 99), "own.yaml", "task, of 99 in all. Row 1: it lists"),
        ("[]", "own.yaml", "rows.json is empty. Fill it with rows"),
        ("", "own.yaml", "rows.json is empty. Fill it with rows"),
        (" \n\n", "own.yaml", "rows.json is empty. Fill it with rows"),
        ("apple, pear", "own.yaml", "must be JSON or JSON lines: Expecting value"),
        (f"[{json.dumps(FRUIT)},\n{json.dumps(FRUIT)}\n", "own.yaml", "must be JSON or JSON lines"),
        (b"\xff\xfe", "own.yaml", "must be UTF-8 text"),
        (json.dumps(FRUIT), "own.json", "file must end in .yaml or .yml"),
        (json.dumps(FRUIT), "none/own.yaml", "is not there. Make it first."),
        (json.dumps(FRUIT), "a\nb.yaml", "must have no control characters"),
        (None, "own.yaml", "rows.json is not a file. Check the path."),
    ],
)
def test_an_import_that_fails_is_one_sentence_and_leaves_nothing(
    capsys, tmp_path, content, output, sentence
):
    source = tmp_path / "rows.json"
    if content is not None:
        source.write_bytes(content.encode() if isinstance(content, str) else content)
    before = list(tmp_path.iterdir())
    status, out, err, _ = take(capsys, source, output=output)
    assert (status, out) == (2, "")
    assert err.startswith("crystalmon: ")
    assert sentence in err
    assert list(tmp_path.iterdir()) == before


def test_an_import_replaces_a_file_only_when_that_is_asked_for(capsys, tmp_path):
    source, file = write_lines(tmp_path, FRUIT), tmp_path / "own.yaml"
    file.write_text("mine")
    status, _, err, _ = take(capsys, source)
    assert status == 2
    assert "is there already" in err
    assert file.read_text() == "mine"
    status, _, _, _ = take(capsys, source, "--force")
    assert status == 0


@settings(max_examples=50, deadline=None)
@given(
    prompts=st.lists(TEXTS, min_size=1, max_size=3, unique=True),
    answers=st.lists(TEXTS, min_size=2, max_size=30, unique_by=str.strip),
)
def test_any_row_comes_back_from_the_text_of_its_suite(tmp_path_factory, prompts, answers):
    folder = tmp_path_factory.getbasetemp()
    source, file = write_lines(folder, {"prompts": prompts, "targets": answers}), folder / "any.yml"
    suite, remarks = import_suite(source, "any")
    file.write_bytes(suite_text(suite, file, source).encode())
    assert load_suite(file) == suite
    assert remarks == []
    assert suite["rows"].prompts == tuple(prompts)
    assert suite["rows"].choice_texts == tuple(answer.strip() for answer in answers)


def test_the_text_can_be_read(capsys, tmp_path):
    answers = [f"answer number {number}" for number in range(40)]
    take(capsys, write_lines(tmp_path, FRUIT, {"prompt": "Which?", "targets": answers}))
    lines = (tmp_path / "own.yaml").read_text().splitlines()
    assert lines[0].startswith("# Made by `crystalmon suite import`")
    assert "#   crystalmon suite validate own.yaml --model MODEL" in lines
    assert '    choices: ["apple", "pear"]' in lines
    assert max(map(len, lines)) <= 100


# --- show ------------------------------------------------------------------------------------


def test_prompts_are_shown_in_a_template_without_a_model(capsys, tmp_path):
    file = write(tmp_path, one=["Flip:", 'Say "x"'], two=["Toss:"])
    status, out, _ = run(capsys, "suite", "show", file, "--view", r"Q: {prompt}\nA:")
    assert status == 0
    assert out.splitlines() == [
        "one: 2 prompts, 2 choices: heads, tails",
        r'"Q: Flip:\nA:"',
        r'"Q: Say \"x\"\nA:"',
        "two: 1 prompt, 2 choices: heads, tails",
        r'"Q: Toss:\nA:"',
    ]
    _, out, _ = run(capsys, "suite", "show", file, "--task", "two", "--view", "<{prompt}>")
    assert [json.loads(line) for line in out.splitlines()[:1]] == ["<Toss:>"]
    assert "Flip" not in out


def test_prompts_are_shown_as_a_chat_sends_them_and_no_weights_are_loaded(
    capsys, tmp_path, monkeypatch
):
    from transformers import AutoModelForCausalLM

    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    file = write(tmp_path, coin=["Flip:"])
    status, out, _ = run(
        capsys, "suite", "show", file, "--model", "liquid-tiny", "--view", "chat", "--task", "coin"
    )
    assert status == 0
    sent = load_tokenizer("liquid-tiny").apply_chat_template(
        [{"role": "user", "content": "Flip:"}], add_generation_prompt=True, tokenize=False
    )
    assert json.loads(out.splitlines()[0]) == sent != "Flip:"


@pytest.mark.parametrize(
    ("view", "begins"),
    [("raw", BOS), ("<{prompt}>", f"{BOS}<"), ("chat", "["), (f"{BOS}{{prompt}}", BOS)],
)
def test_what_is_shown_begins_with_the_tokens_that_the_tokenizer_adds(view, begins):
    suite = TaskSuite("s", (Task("t", ("ab",), (Choice("a"), Choice("b"))),))
    ((sent,),) = render_suite(suite, make_tokenizer(bos=True, eos=True, chat=True), view).values()
    assert sent.startswith(f"{begins}ab")
    assert sent.count(BOS) == (view != "chat")
    assert "</s>" not in sent


def test_a_chat_is_not_shown_without_its_model(capsys, tmp_path):
    status, out, err = run(capsys, "suite", "show", write(tmp_path, t=["a"]), "--view", "chat")
    assert (status, out) == (2, "")
    assert "view chat needs a model's chat template" in err


# --- validate --------------------------------------------------------------------------------


def test_validation_without_a_model_is_free_of_torch(tmp_path):
    file = write(tmp_path, coin=["Flip: ", "Toss:"])
    code = (
        "import sys; from crystalmon.cli.main import main; "
        f"main(['suite', 'validate', {file!r}, '--json']); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tasks"] == [{"name": "coin", "wordings": 2, "choices": 2}]
    spaced, few = found["warnings"]
    assert 'a prompt of coin ends in white space, such as "Flip: "' in spaced
    assert "2 wordings: wide intervals" in few


def test_a_view_is_not_tried_without_a_model(capsys, tmp_path):
    status, _, err = run(capsys, "suite", "validate", write(tmp_path, t=["a"]), "--view", "chat")
    assert status == 2
    assert "needs a model" in err


def test_what_is_measured_is_what_a_probe_measures(capsys):
    suite = ("--suite", "liquid-tiny")
    _, out, _ = run(capsys, "suite", "validate", "liquid-tiny", "--model", "liquid-tiny", "--json")
    found = json.loads(out)
    _, out, _ = run(capsys, "probe", "liquid-tiny", *suite, "--json")
    record = json.loads(out)
    assert [task["name"] for task in found["tasks"]] == list(record["tasks"])
    assert found["tokens"] > found["rows"] > 0
    for task in found["tasks"]:
        metrics = record["tasks"][task["name"]]["metrics"]
        assert task["coverage"] == pytest.approx(metrics["coverage"])
        assert task["liquidity"] == pytest.approx(metrics["liquidity"])
        assert task["measurable"] == round(metrics["measurable"] * task["wordings"])
        assert task["verdict"] == "fine"
        assert len(task["unmeasurable"]) == task["wordings"] - task["measurable"]


def test_the_table_says_what_cannot_be_measured_and_what_follows_instead(capsys, tmp_path):
    good = load_suite("liquid-tiny")["coin"].prompts
    bad = [f"Is {number} a tiger?\nAnswer:" for number in range(13)]
    file = write(tmp_path, alone=good[:1], some=[f"{good[1]} ", *good[2:5]], others=bad)
    status, out, _ = run(capsys, "suite", "validate", file, "--model", "liquid-tiny")
    assert status == 0
    assert "one wording: entropy and KL only" in out
    assert "4 wordings: wide intervals" in out
    assert "listed answers under 10% after 13 of 13 wordings" in out
    assert "and 3 more" in out
    assert re.search(r"others .* 0 of 13 ", out)
    assert "others:" in out
    shown = [line for line in out.splitlines() if "a tiger?" in line]
    assert len(shown) == 10
    shares = [float(line.split("%")[0]) for line in shown]
    assert shares == sorted(shares)
    assert "→" in shown[0]
    assert "Try --view chat, " in out
    assert "a prompt of some ends in white space" in out


def test_a_task_that_can_be_measured_is_not_listed_as_one_that_cannot(capsys, tmp_path):
    good = load_suite("liquid-tiny")["coin"].prompts[:8]
    file = write(tmp_path, coin=[*good, "Is 4 a tiger?"], alone=["Is 4 a tiger?"])
    _, out, _ = run(capsys, "suite", "validate", file, "--model", "liquid-tiny")
    assert re.search(r"coin .* 8 of 9 .* fine ", out)
    assert "coin, which can be measured even so:" in out
    assert re.search(r"alone .* after 1 of 1 wording ", out)
    assert "alone:" in out


def test_in_a_view_that_is_not_answered_the_plain_prompts_are_told_of(capsys, tmp_path):
    file = write(tmp_path, coin=load_suite("liquid-tiny")["coin"].prompts)
    given = ["--model", "liquid-tiny", "--json", "--view", "{prompt} tiger 4 1 2"]
    status, out, _ = run(capsys, "suite", "validate", file, *given)
    assert status == 0
    (task,) = json.loads(out)["tasks"]
    assert task["verdict"].endswith("(in view raw: 100%, which stands in for the base)")


def base_of(tables, plain=None, token=0) -> Any:
    """A monitor's parts that tell of its base: by task, [P, C] probabilities of the answers."""
    tasks = [
        Task(name, tuple(f"p{row}" for row in range(len(table))), (Choice("a"), Choice("b")))
        for name, table in tables.items()
    ]
    rows = np.full((sum(map(len, tables.values())), 5), np.log(0.1), dtype=np.float32)
    rows[:, token] = np.log(0.6)
    with np.errstate(divide="ignore"):
        reference = SimpleNamespace(
            log_choice={name: np.log(table) for name, table in tables.items()},
            plain={name: np.log(table) for name, table in (plain or {}).items()},
            log_p=lambda prompts: rows[prompts],
        )
    plan = SimpleNamespace(rows=[(2,)] * len(rows))
    return SimpleNamespace(suite=TaskSuite("s", tuple(tasks)), reference=reference, plan=plan)


def test_verdicts_follow_from_the_answers():
    from crystalmon.monitor.suite_check import check_suite

    liquid = np.tile([[0.6, 0.2], [0.1, 0.7]], (4, 1))
    rare = np.where(np.arange(8)[:, None] < 5, 0.04, liquid)
    tables = {
        "fine": liquid,
        "mostly": np.where(np.arange(8)[:, None] < 4, 0.04, liquid),
        "rare": rare,
        "ordered": np.tile([0.3, 0.2], (8, 1)),
        "few": liquid[:2],
        "one": liquid[:1],
    }
    checked = {task.name: task for task in check_suite(base_of(tables, {"rare": liquid}), Words())}
    assert {name: task.verdict for name, task in checked.items()} == {
        "fine": "fine",
        "mostly": "56% goes to other answers",
        "rare": (
            "not measurable: listed answers under 10% after 5 of 8 wordings "
            "(in view raw: 80%, which stands in for the base)"
        ),
        "ordered": "ordered: the base already answers alike, so no order",
        "few": "2 wordings: wide intervals",
        "one": "one wording: entropy and KL only",
    }
    assert checked["rare"].coverage == pytest.approx((5 * 0.08 + 3 * 0.8) / 8)
    assert checked["mostly"].measurable == 4
    assert checked["fine"].liquidity == pytest.approx(0.2158, abs=1e-4)  # 0.6853 − 0.4696
    assert [each.prompt for each in checked["rare"].unmeasurable] == ["p0", "p1", "p2", "p3", "p4"]
    (first, *_) = checked["rare"].unmeasurable
    assert first.coverage == pytest.approx(0.08)
    assert (first.next_token, first.probability) == (" zero", pytest.approx(0.6))


class Words:
    """A tokenizer whose tokens are words, and which drops the space that a text begins with."""

    def decode(self, ids, **options):
        names = ("zero", "one", "two", "three", "four")
        return "".join(f" {names[index]}" for index in ids).lstrip()
