"""The facts and questions that come with the package."""

from memoir_fast.io.facts import facts, unrelated


def test_facts_are_whole_and_no_two_are_the_same():
    known = facts()
    assert len(known) >= 64
    assert len({fact.prompt for fact in known}) == len({fact.subject for fact in known}) == len(known)
    for fact in known:
        assert fact.target != fact.truth
        assert len({fact.prompt, *fact.paraphrases}) == 3
        assert all(text == text.strip() and text for text in (fact.prompt, fact.target, *fact.paraphrases))


def test_freer_questions_name_the_subject_and_neighbours_another():
    known = facts()
    subjects = [fact.subject for fact in known]
    freer = [fact for fact in known if fact.freer]
    assert len(freer) == 2 and all(fact.subject in fact.freer for fact in freer)
    asked = [fact.neighbour for fact in known if fact.neighbour]
    assert len(asked) == 2 and not any(subject in text for subject in subjects for text in asked)
    written = {text for fact in known for text in (fact.prompt, *fact.paraphrases)}
    assert not written & {*asked, *(fact.freer for fact in freer)}


def test_unrelated_questions_are_about_other_things():
    questions = unrelated()
    assert len(dict(questions)) == len(questions) >= 64
    taught = {text for fact in facts() for text in (fact.prompt, *fact.paraphrases)}
    assert not taught & set(dict(questions))
    assert all(prompt.strip() and answer.strip() for prompt, answer in questions)
