"""Rows that are split over two and four processes of gloo."""


def test_answers_are_those_of_one_process(tmp_path, on_processes):
    on_processes("checks_of_shards", tmp_path)
