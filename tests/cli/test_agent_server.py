"""``learnit-r8 mcp``: what programs and agents see of runs, by the SDK's own client over stdio."""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import threading

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.cli import main
from tests.cli.commands import GONE, ROOT, SEVEN, printed
from tests.drive import NAN
from tests.journal.run_folders import STARTED, folder_with

READING = ["list_runs", "run_status", "list_incidents", "list_suspects", "compare_runs"]


def train(folder, name, *, num_epochs=6, bad=()):
    """A run of its own batches of 100 samples of 10 classes, three of them mislabelled, with a metric."""
    model = {"w": np.zeros(1)}
    r8 = R8Scheduler(
        100, batch_size=10, num_epochs=num_epochs, run_dir=folder / name, name=name, notes=f"about {name}",
        state_callback=lambda: model, load_callback=model.update,
    )  # fmt: skip
    count = itertools.count()
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            losses = np.where(indices < 3, 5.0, 1 + indices / 1e3) / (1 + r8.global_step / 50)
            r8.update_with_loss(losses * NAN if next(count) in bad else losses)
        r8.log(val_loss=2.0 - epoch / 10 - len(bad))
    r8.close()


@pytest.fixture(scope="module")
def _sdk():
    """Loaded before a test captures what is printed: it keeps the stream for errors of when it was loaded."""
    pytest.importorskip("mcp")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(folder, "first")
    train(folder, "second", bad=(15,))
    return folder


def talk(folder, conversation, *options):
    """Hold a conversation with a server in a process of its own."""
    # Here, as the two workers of the tests would both take a second for it.
    import mcp

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "learnit_r8", "mcp", str(folder), *options], env=environment
    )

    async def held():
        async with mcp.Client(server) as client:
            return await conversation(client)

    return asyncio.run(asyncio.wait_for(held(), 120))


async def answer_of(client, tool, **arguments):
    """What a tool answers: its JSON, or the text of its refusal."""
    result = await client.call_tool(tool, arguments)
    (content,) = result.content
    return content.text.removeprefix(f"Error executing tool {tool}: ") if result.is_error else json.loads(content.text)


@pytest.mark.program
@pytest.mark.usefixtures("_sdk")
def test_every_view_of_the_command_line_is_served_read_only(runs, capsys):
    """The tools answer what the commands of the same name print as JSON; without --allow-ask nothing is asked for."""

    async def conversation(client):
        tools = (await client.list_tools()).tools
        listed = await answer_of(client, "list_runs", sort="val_loss")
        status = await answer_of(client, "run_status", run="second")
        incidents = await answer_of(client, "list_incidents", run="second")
        suspects = await answer_of(client, "list_suspects", run="first", top=2)
        compared = await answer_of(client, "compare_runs", runs=["first", "second"])
        asked = await client.call_tool("ask", {"run": "first", "request": "stop"})
        refused = [
            await answer_of(client, "run_status", run="third"),
            await answer_of(client, "run_status", run=str(runs.parent)),
            await answer_of(client, "compare_runs", runs=["first"]),
            await answer_of(client, "list_suspects", precision=2.0),
            await answer_of(client, "list_runs", sort="val_los"),
            await answer_of(client, "list_runs", top=0),
            await answer_of(client, "list_suspects", top=-1),
        ]
        return tools, listed, status, incidents, suspects, compared, asked, refused

    tools, listed, status, incidents, suspects, compared, asked, refused = talk(runs, conversation)

    def told(*arguments):
        return json.loads("\n".join(printed(capsys, *arguments, "--json")[1]))

    assert [tool.name for tool in tools] == READING
    assert all(tool.annotations.read_only_hint and tool.description for tool in tools)
    assert listed["runs"] == told("ls", runs, "--sort", "val_loss")
    assert [run["name"] for run in listed["runs"]] == ["second", "first"]
    assert status == told("status", runs / "second")
    assert incidents == told("incidents", runs / "second")
    assert incidents["incidents"][0]["diagnosis"].startswith("the refused batch was to blame")
    everything = told("samples", runs / "first", "--suspects")
    assert suspects == everything | {"samples": everything["samples"][:2], "more_before": ""}
    assert {sample["index"] for sample in everything["samples"]} == {0, 1, 2}
    assert compared == told("compare", runs / "first", runs / "second")
    assert asked.is_error
    assert refused[0].startswith(f"run must be a run folder, or one in {str(runs)!r}")
    assert refused[1] == f"run must be one in {str(runs)!r}, got {str(runs.parent)!r}."
    assert refused[2].startswith("compare needs two runs or more, got 1")
    assert refused[3] == "precision must be in (0, 1), got 2.0."
    assert refused[4].endswith("Did you mean 'val_loss'?")
    assert refused[5:] == [f"top must be a whole number >= 1, got {number}." for number in (0, -1)]


@pytest.mark.program
@pytest.mark.usefixtures("_sdk")
def test_a_training_is_asked_and_answers(tmp_path):
    """With --allow-ask a running training is paused, goes on and is stopped; a finished one refuses, as with `ask`."""
    folder_with(tmp_path / "over", STARTED, *SEVEN, process=GONE)
    r8 = R8Scheduler(100, batch_size=10, num_epochs=10**6, run_dir=tmp_path / "live", name="live")
    began = threading.Event()

    def loop():
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                began.set()
                r8.update_with_loss(1.0)
        r8.close()

    training = threading.Thread(target=loop)
    training.start()
    began.wait(60)

    async def conversation(client):
        tools = (await client.list_tools()).tools
        answers = [
            await answer_of(client, "ask", run="live", request=request) for request in ("pause", "unpause", "stop")
        ]
        refused = [
            await answer_of(client, "ask", run="over", request="stop"),
            await answer_of(client, "ask", run="", request="stop"),
            await answer_of(client, "ask", run="live", request="reboot"),
        ]
        return tools, answers, refused

    with contextlib.ExitStack() as ends:
        ends.callback(training.join, 60)
        ends.callback(r8.requests.stop)
        tools, answers, refused = talk(tmp_path, conversation, "--allow-ask")

    assert [tool.name for tool in tools] == [*READING, "ask"]
    assert not tools[-1].annotations.read_only_hint
    assert [answer["is_read"] for answer in answers] == [True] * 3
    assert "nothing would read the request" in refused[0]
    assert refused[1] == "run must be named where something is asked for, got ''."
    assert "request" in refused[2]
    assert not training.is_alive()
    assert r8.phase == "stopped"


def test_without_the_sdk_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mcp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)

    assert main(["mcp", str(tmp_path)]) == 1
    assert 'pip install ".[mcp]" in a clone' in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    assert main(["mcp", str(tmp_path / "none")]) == 1
    assert "RUNS must be a folder of runs, got" in capsys.readouterr().err
