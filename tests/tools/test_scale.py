"""The table of what each call costs as edits grow."""


def test_a_column_for_each_number_of_edits(tool, capsys):
    assert tool("scale").main(["70", "40", "--banks"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| call | 70 | 40 |" and rule == "| --- | --- | --- |"
    names = {row.split(" | ")[0].removeprefix("| ") for row in rows}
    assert {"open", "undo", "edit, 10", "save", "reload", "faded among 100"} <= names
    assert all(float(cell) >= 0 for row in rows for cell in row.strip("| ").split(" | ")[1:])
