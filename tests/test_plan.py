"""The plan against tokenizers made by hand and against enumerating all completions."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from crystalmon.scoring.plan import ScoringPlan, build_plan, describe_merges
from crystalmon.suites.tasks import Choice, Task, TaskSuite

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCNY0123456789 :?\n"
BOS, EOS = "<s>", "</s>"
TEMPLATE = (
    "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def make_tokenizer(
    *merges: str, bos: bool = False, eos: bool = False, chat: bool = False
) -> PreTrainedTokenizerFast:
    """One token per character, joined by the BPE merges given, such as "1 0"."""
    tokens = [BOS, EOS, *ALPHABET, "[", "]", ">"]
    pairs = [tuple(merge.replace("_", " ") for merge in pair.split("+")) for pair in merges]
    tokens += [left + right for left, right in pairs]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    backend.decoder = decoders.Fuse()
    if bos or eos:
        single = " ".join([BOS] * bos + ["$A"] + [EOS] * eos)
        special = [(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])]
        backend.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=special
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=TEMPLATE if chat else None,
        clean_up_tokenization_spaces=False,
    )


def suite_of(prompts, *choices) -> TaskSuite:
    made = tuple(c if isinstance(c, Choice) else Choice(c, (c,)) for c in choices)
    return TaskSuite("s", (Task("t", tuple(prompts), made),))


def tokens_of(plan: ScoringPlan, edge: int) -> tuple[int, ...]:
    """The token path that ends at an edge."""
    path: list[int] = []
    while edge >= 0:
        path.insert(0, int(plan.edge_token[edge]))
        edge = int(plan.edge_parent[edge])
    return tuple(path)


def cells(plan: ScoringPlan) -> list[list[tuple[int, ...]]]:
    """Token paths by flat (prompt, choice) index."""
    found: list[list[tuple[int, ...]]] = [[] for _ in range(sum(p * c for p, c in plan.shapes))]
    for edge, cell in zip(plan.path_edge, plan.path_cell, strict=True):
        found[cell].append(tokens_of(plan, int(edge)))
    return [sorted(paths) for paths in found]


def texts(plan: ScoringPlan, tokenizer) -> list[list[list[str]]]:
    """The same, as token strings."""
    name = tokenizer.convert_ids_to_tokens
    return [sorted(name(list(path)) for path in paths) for paths in cells(plan)]


def check_layout(plan: ScoringPlan) -> None:
    """What every plan must hold, whatever the tokenizer."""
    assert len(set(zip(plan.edge_row, plan.edge_token, strict=True))) == len(plan.edge_row)
    own = list(zip(plan.row_prompt.tolist(), plan.rows, strict=True))
    assert len(set(own)) == len(own)  # no row is computed twice for one prompt
    assert plan.num_tokens == sum(len(row) for row in plan.rows)
    assert plan.row_prompt[: plan.num_prompts].tolist() == list(range(plan.num_prompts))
    assert plan.row_parent[: plan.num_prompts].tolist() == [-1] * plan.num_prompts
    for row in range(plan.num_prompts, len(plan.rows)):
        parent, prompt = int(plan.row_parent[row]), int(plan.row_prompt[row])
        assert parent < row
        assert plan.row_prompt[parent] == prompt
        assert plan.rows[row][:-1] == plan.rows[parent]
        assert plan.rows[row][: len(plan.rows[prompt])] == plan.rows[prompt]
    starts = {row[:length] for row in plan.rows for length in range(1, len(row) + 1)}
    assert plan.num_unique_tokens == len(starts)
    prompt_of = [prompt for prompt, _ in enumerate_cells(plan)]
    for edge, parent in enumerate(plan.edge_parent):
        assert parent < edge
        prefix = tokens_of(plan, int(parent))
        row = plan.rows[plan.edge_row[edge]]
        if parent < 0:
            assert plan.edge_row[edge] < plan.num_prompts
        else:
            above = plan.rows[plan.edge_row[parent]]
            assert row == above + prefix[-1:]
        assert row[len(row) - len(prefix) :] == prefix
    for edge, cell in zip(plan.path_edge, plan.path_cell, strict=True):
        path = tokens_of(plan, int(edge))
        assert plan.rows[plan.edge_row[edge]] == plan.rows[prompt_of[cell]] + path[:-1]
    assert len(plan.rows) <= plan.num_prompts + len(plan.edge_row)


def enumerate_cells(plan: ScoringPlan) -> list[tuple[int, int]]:
    """(prompt, choice) of every flat index, prompts counted over tasks."""
    found, start = [], 0
    for prompts, choices in plan.shapes:
        found += [(start + p, c) for p in range(prompts) for c in range(choices)]
        start += prompts
    assert start == plan.num_prompts
    return found


def nested_paths(plan: ScoringPlan) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(longer, shorter) pairs as token paths; only for plans of one prompt."""
    path = [tokens_of(plan, int(edge)) for edge in plan.path_edge]
    return {(path[longer], path[shorter]) for longer, shorter in plan.nested.tolist()}


def naive_nested(paths: list[tuple[int, ...]]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every path with the longest other that it begins with."""
    pairs = set()
    for path in paths:
        starts = [p for p in paths if len(p) < len(path) and path[: len(p)] == p]
        if starts:
            pairs.add((path, max(starts, key=len)))
    return pairs


# --- choices of several tokens ---------------------------------------------------------------


def test_a_choice_of_several_tokens_is_a_path_with_a_row_per_token():
    tokenizer = make_tokenizer()
    plan = build_plan(suite_of(["go:"], "red", "reb", "x"), tokenizer)
    check_layout(plan)
    assert texts(plan, tokenizer) == [[["r", "e", "d"]], [["r", "e", "b"]], [["x"]]]
    go = tuple(tokenizer("go:")["input_ids"])
    r, e = (tokenizer.convert_tokens_to_ids(c) for c in "re")
    assert plan.rows == (go, (*go, r), (*go, r, e))  # "re" is read once for both
    assert plan.nested.shape == (0, 2)
    assert plan.num_tokens == 3 + 4 + 5
    assert plan.shapes == ((1, 3),)
    assert plan.merges == ()


def test_forms_default_to_with_and_without_a_space():
    tokenizer = make_tokenizer("_+a")
    plan = build_plan(suite_of(["go:"], Choice("a"), Choice("b")), tokenizer)
    assert texts(plan, tokenizer) == [[[" a"], ["a"]], [[" ", "b"], ["b"]]]


def test_aliases_count_as_their_choice_and_equal_paths_once():
    tokenizer = make_tokenizer()
    choices = Choice("heads", ("h", "H:", "heads")), Choice("tails", ("t",))
    plan = build_plan(suite_of(["go:"], *choices), make_tokenizer())
    check_layout(plan)
    assert cells(plan)[1] == [tuple(tokenizer("t")["input_ids"])]
    assert len(cells(plan)[0]) == 3
    # a form inside another of the same choice is taken out of the shorter one all the same
    assert len(plan.nested) == 1
    assert plan.path_cell[plan.nested[0]].tolist() == [0, 0]


def test_two_forms_of_one_choice_with_the_same_tokens_are_one_path():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    plan = build_plan(suite_of(["go:"], Choice("a", ("a", "A")), Choice("b", ("b",))), tokenizer)
    assert [len(paths) for paths in cells(plan)] == [1, 1]


# --- choices that begin with one another -----------------------------------------------------


def test_one_ten_hundred():
    tokenizer = make_tokenizer()
    plan = build_plan(suite_of(["n:"], "100", "1", "10", "17", "2"), tokenizer)
    check_layout(plan)
    one, zero, seven = (tokenizer.convert_tokens_to_ids(c) for c in "107")
    assert nested_paths(plan) == {
        ((one, zero), (one,)),
        ((one, zero, zero), (one, zero)),
        ((one, seven), (one,)),
    }


def test_a_prefix_in_text_that_is_none_in_tokens_is_not_nested():
    tokenizer = make_tokenizer("1+0")
    plan = build_plan(suite_of(["n:"], "1", "10", "100"), tokenizer)
    assert texts(plan, tokenizer) == [[["1"]], [["10"]], [["10", "0"]]]
    assert [texts(plan, tokenizer)[plan.path_cell[k]] for k in plan.nested[0]] == [
        [["10", "0"]],
        [["10"]],
    ]
    assert len(plan.nested) == 1


def test_new_and_new_york():
    tokenizer = make_tokenizer()
    plan = build_plan(suite_of(["in"], Choice("New"), Choice("New York")), tokenizer)
    check_layout(plan)
    everything = [path for paths in cells(plan) for path in paths]
    assert nested_paths(plan) == naive_nested(everything)
    assert len(plan.nested) == 2  # with and without the leading space


# --- the whole tree against enumeration ------------------------------------------------------

LETTERS = "ab1"


def toy_probability(prefix: str, letter: str) -> float:
    """A language model over three letters that depends on all that came before."""
    weights = [1.0 + (hash_of(prefix + other) % 97) for other in LETTERS]
    return weights[LETTERS.index(letter)] / sum(weights)


def hash_of(text: str) -> int:
    return sum((index + 1) * 31 * ord(letter) ** 2 for index, letter in enumerate(text))


def enumerated(prompt: str, owner: dict[str, int], count: int) -> list[float]:
    """P(choice) by giving every completion of full depth to the longest form it begins with."""
    depth = max(map(len, owner))
    mass: list[list[float]] = [[] for _ in range(count)]
    for letters in itertools.product(LETTERS, repeat=depth):
        completion = "".join(letters)
        forms = [completion[:n] for n in range(depth, 0, -1) if completion[:n] in owner]
        if forms:
            steps = range(depth)
            chance = math.prod(toy_probability(prompt + completion[:i], letters[i]) for i in steps)
            mass[owner[forms[0]]].append(chance)
    return [math.fsum(values) for values in mass]


def added_up(plan: ScoringPlan, tokenizer) -> list[float]:
    """P(choice) from the plan: edges multiply, nested paths are taken out, choices add up."""
    name = tokenizer.convert_ids_to_tokens
    mass = []
    for edge in plan.path_edge.tolist():
        chance = 1.0
        while edge >= 0:
            prefix = "".join(name(list(plan.rows[plan.edge_row[edge]])))
            chance *= toy_probability(prefix, name(int(plan.edge_token[edge])))
            edge = int(plan.edge_parent[edge])
        mass.append(chance)
    own = list(mass)
    for longer, shorter in plan.nested.tolist():
        own[shorter] -= mass[longer]
    total = [0.0] * len(cells(plan))
    for value, cell in zip(own, plan.path_cell.tolist(), strict=True):
        total[cell] += value
    return total


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    forms=st.sets(st.text(LETTERS, min_size=1, max_size=4), min_size=2, max_size=9),
    count=st.integers(2, 4),
    random=st.randoms(use_true_random=False),
)
def test_the_plan_gives_every_completion_to_the_longest_form(forms, count, random):
    """Exact, and without double counting: the oracle never looks at tokens or trees."""
    listed = sorted(forms)
    random.shuffle(listed)
    count = min(count, len(listed))
    owner = {form: index % count for index, form in enumerate(listed)}
    choices = [
        Choice(f"choice {index}", tuple(form for form in listed if owner[form] == index))
        for index in range(count)
    ]
    plan = build_plan(suite_of(["a", "1b"], *choices), TOKENIZER)
    check_layout(plan)
    expected = enumerated("a", owner, count) + enumerated("1b", owner, count)
    assert added_up(plan, TOKENIZER) == pytest.approx(expected, rel=1e-10, abs=1e-15)
    for coverage in np.reshape(added_up(plan, TOKENIZER), (2, count)).sum(axis=1):
        assert coverage <= 1 + 1e-12
    assert nested_paths(build_plan(suite_of(["a"], *choices), TOKENIZER)) == naive_nested(
        [tuple(TOKENIZER(form)["input_ids"]) for form in listed]
    )


TOKENIZER = make_tokenizer()


@pytest.mark.parametrize("merges", [(), ("1+0",), ("_+1", "1+0")])
def test_permuting_choices_permutes_cells(merges):
    tokenizer = make_tokenizer(*merges)
    choices = [Choice("1"), Choice("10"), Choice("100"), Choice("2", ("2", "b"))]
    order = [2, 0, 3, 1]
    before = cells(build_plan(suite_of(["n:"], *choices), tokenizer))
    after = cells(build_plan(suite_of(["n:"], *(choices[i] for i in order)), tokenizer))
    assert after == [before[i] for i in order]


# --- several tasks and prompts ---------------------------------------------------------------


def test_tasks_and_prompts_lie_end_to_end_in_suite_order():
    tokenizer = make_tokenizer()
    first = Task("first", ("go:", "now:"), (Choice("a", ("a",)), Choice("b", ("b",))))
    second = Task("second", ("say:",), tuple(Choice(c, (c,)) for c in "012"))
    plan = build_plan(TaskSuite("s", (first, second)), tokenizer)
    check_layout(plan)
    assert plan.shapes == ((2, 2), (1, 3))
    assert plan.num_prompts == 3
    ids = tokenizer(["go:", "now:", "say:"])["input_ids"]
    assert plan.rows == tuple(map(tuple, ids))
    assert texts(plan, tokenizer) == [[[c]] for c in "abab012"]
    assert plan.path_cell.tolist() == list(range(7))


def test_the_same_prompt_in_two_tasks_has_its_own_row_in_each():
    choices = Choice("a", ("a",)), Choice("b", ("b",))
    tasks = Task("x", ("go:",), choices), Task("y", ("go:",), choices)
    plan = build_plan(TaskSuite("s", tasks), make_tokenizer())
    check_layout(plan)
    assert plan.rows[0] == plan.rows[1]
    assert len(plan.rows) == 2


# --- the boundary between prompt and choice --------------------------------------------------


def test_a_form_that_merges_with_the_prompt_is_tokenized_alone_and_named():
    tokenizer = make_tokenizer("_+1")
    plan = build_plan(suite_of(["n: ", "n:"], "1", "12", "2"), tokenizer)
    check_layout(plan)
    assert plan.merges == (("t", "n: ", "1"), ("t", "n: ", "12"))
    assert texts(plan, tokenizer) == 2 * [[["1"]], [["1", "2"]], [["2"]]]
    message = describe_merges(plan.merges)
    assert "2 forms merge with the last token of their prompt" in message
    assert "task 't': 'n: ' + '1'" in message
    assert "more" not in message.partition("'n: '")[2].partition(".")[0]


def test_earlier_merges_win_within_a_form():
    tokenizer = make_tokenizer("_+b", "b+c")
    plan = build_plan(suite_of(["a"], Choice("bc", ("bc", " bc")), "1"), tokenizer)
    assert texts(plan, tokenizer)[0] == [[" b", "c"], ["bc"]]
    assert plan.merges == ()


def test_a_tokenizer_that_marks_the_start_of_text_is_asked_in_context():
    """Alone, "a" would get the marker of a first word; after a prompt it has none."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=" ", prepend_scheme="first", split=False
    )
    plan = build_plan(suite_of(["go:"], "a", "b"), tokenizer)
    assert tokenizer.tokenize("a") == [" ", "a"]
    assert texts(plan, tokenizer) == [[["a"]], [["b"]]]
    assert tokenizer.convert_ids_to_tokens(list(plan.rows[0])) == [" ", "g", "o", ":"]


def test_long_lists_of_merges_are_cut():
    merges = [("t", f"{n}" * 50 + " ", "1") for n in range(5)]
    message = describe_merges(merges)
    assert message.startswith("5 forms merge")
    assert "and 2 more" in message
    assert "'" + "1" * 29 + " ' + '1'" in message
    assert "333" not in message


# --- special tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_special_tokens_go_before_the_prompt_and_never_after_it(bos, eos):
    tokenizer = make_tokenizer("1+0", bos=bos, eos=eos)
    plan = build_plan(suite_of(["go:"], "1", "10", "ab"), tokenizer)
    check_layout(plan)
    start = (tokenizer.bos_token_id,) * bos
    assert plan.rows[0] == (*start, *make_tokenizer("1+0")("go:")["input_ids"])
    assert texts(plan, tokenizer) == [[["1"]], [["10"]], [["a", "b"]]]
    assert plan.merges == ()


@pytest.mark.parametrize("eos", [False, True])
def test_an_end_of_text_that_the_prompt_itself_writes_is_kept(eos):
    tokenizer = make_tokenizer(eos=eos)
    plan = build_plan(suite_of([f"go:{EOS}"], "a", "b"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(plan.rows[0])) == ["g", "o", ":", EOS]
    assert texts(plan, tokenizer) == [[["a"]], [["b"]]]


def test_a_start_that_is_also_the_end_of_text_stays_at_the_start():
    tokenizer = make_tokenizer(bos=True)
    tokenizer.eos_token = BOS
    plan = build_plan(suite_of([BOS, "go:"], "a", "b"), tokenizer)
    read = [tokenizer.convert_ids_to_tokens(list(row)) for row in plan.rows[1:2]]
    assert read == [[BOS, "g", "o", ":"]], "the first prompt looks like one with an end appended"
    assert texts(plan, tokenizer)[2:] == [[["a"]], [["b"]]]


def test_merged_forms_are_tokenized_alone_without_special_tokens():
    tokenizer = make_tokenizer("_+1", bos=True, eos=True)
    plan = build_plan(suite_of(["n: "], "1", "2"), tokenizer)
    assert texts(plan, tokenizer) == [[["1"]], [["2"]]]


# --- views -----------------------------------------------------------------------------------


def test_view_chat_sends_the_prompt_through_the_template():
    tokenizer = make_tokenizer(bos=True, chat=True)
    plan = build_plan(suite_of(["go:"], Choice("a"), Choice("b")), tokenizer, "chat")
    check_layout(plan)
    assert plan.view == "chat"
    # the template writes its own special tokens, so the tokenizer's are left out
    assert tokenizer.convert_ids_to_tokens(list(plan.rows[0])) == ["[", "g", "o", ":", "]", ">"]
    assert texts(plan, tokenizer) == [[[" ", "a"], ["a"]], [[" ", "b"], ["b"]]]


def test_view_raw_takes_no_notice_of_the_template():
    plain, chat = make_tokenizer(), make_tokenizer(chat=True)
    suite = suite_of(["go:"], "a", "b")
    assert build_plan(suite, chat).rows == build_plan(suite, plain).rows


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('a system role is needed') }}", "TemplateError: a system role is"),
        ("{{ messages[0].content.no_such() }}", "UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[1]['content'] + 1 }}", "Error: "),
    ],
)
def test_a_template_that_raises_is_told_in_one_sentence(template, told):
    tokenizer = make_tokenizer(chat=True)
    tokenizer.name_or_path, tokenizer.chat_template = "some/model", template
    with pytest.raises(ValueError, match="the chat template of some/model must take") as caught:
        build_plan(suite_of(["go:"], "a", "b"), tokenizer, "chat")
    assert told in str(caught.value)
    assert "Use view='raw', or set another template." in str(caught.value)


def test_view_chat_needs_a_template():
    with pytest.raises(
        ValueError,
        match=r"view must be 'raw' for a tokenizer without a chat template, got 'chat'. Set",
    ):
        build_plan(suite_of(["go:"], "a", "b"), make_tokenizer(), "chat")


def test_an_unknown_view_is_refused():
    with pytest.raises(
        ValueError, match=r"view must be raw, chat or a template with .prompt. in it, got 'cooked'"
    ):
        build_plan(suite_of(["go:"], "a", "b"), make_tokenizer(), "cooked")  # type: ignore[arg-type]


# --- what is refused -------------------------------------------------------------------------


def test_two_choices_with_the_same_tokens_are_refused():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    suite = suite_of(["go:"], Choice("a", ("a",)), Choice("Big A", ("A",)))
    with pytest.raises(
        ValueError,
        match=r"task 't': choices 'a' and 'Big A' give the same tokens \[2\] after prompt 'go:'. "
        r"Change one of their forms",
    ):
        build_plan(suite, tokenizer)


def test_a_form_without_tokens_is_refused():
    suite = suite_of(["go:"], "a", "#")
    with pytest.raises(
        ValueError, match=r"task 't': form '#' must give at least one token, got none"
    ):
        build_plan(suite, make_tokenizer())


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match=r"prompt '#' must give at least one token. Change"):
        build_plan(suite_of(["#"], "a", "b"), make_tokenizer())
    # with a start-of-text token there is one
    assert len(build_plan(suite_of(["#"], "a", "b"), make_tokenizer(bos=True)).rows[0]) == 1


# --- the fingerprint, and no trace -----------------------------------------------------------


def test_fingerprint_is_that_of_the_events_scored():
    suite = suite_of(["go:"], "1", "10")
    same = build_plan(suite, make_tokenizer()).fingerprint
    assert build_plan(suite, make_tokenizer()).fingerprint == same
    others = [
        build_plan(suite_of(["go:"], "10", "1"), make_tokenizer()),
        build_plan(suite_of(["go:"], "1", "12"), make_tokenizer()),
        build_plan(suite_of(["ho:"], "1", "10"), make_tokenizer()),
        build_plan(suite_of(["go:", "g:"], "1", "10"), make_tokenizer()),
        build_plan(suite, make_tokenizer("1+0")),
        build_plan(suite, make_tokenizer(bos=True)),
        build_plan(suite, make_tokenizer(chat=True), "chat"),
        build_plan(suite_of(["go:"], Choice("1", ("1", "2")), "10"), make_tokenizer()),
    ]
    assert len({same, *(plan.fingerprint for plan in others)}) == len(others) + 1


def test_the_tokenizer_is_left_unchanged():
    tokenizer = make_tokenizer("_+1", bos=True, eos=True, chat=True)
    tokenizer.pad_token = EOS
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    tokenizer.model_max_length = 4
    tokenizer.backend_tokenizer.enable_padding(length=8, pad_token=EOS, pad_id=1)
    tokenizer.backend_tokenizer.enable_truncation(2)

    def snapshot():
        return (
            tokenizer.backend_tokenizer.to_str(),
            tokenizer.padding_side,
            tokenizer.truncation_side,
            tokenizer.model_max_length,
            tokenizer.chat_template,
            dict(tokenizer.special_tokens_map),
            len(tokenizer),
        )

    before = snapshot()
    suite = suite_of(["a rather long prompt: "], "1", "10")
    raw, chat = build_plan(suite, tokenizer), build_plan(suite, tokenizer, "chat")
    assert snapshot() == before
    # nor does its padding or truncation reach the plan
    assert len(raw.rows[0]) == 1 + len("a rather long prompt: ")
    assert len(chat.rows[0]) == len("[a rather long prompt: ]>")


def test_a_processor_stands_for_its_tokenizer():
    suite, tokenizer = suite_of(["go:"], "a", "b"), make_tokenizer()
    processor = SimpleNamespace(tokenizer=tokenizer)
    assert build_plan(suite, processor).fingerprint == build_plan(suite, tokenizer).fingerprint
