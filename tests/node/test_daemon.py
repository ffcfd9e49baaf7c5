"""The whole node in one process against a coordinator on loopback, with a real tiny engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from novamesh.config import Pool, load_pool
from novamesh.keys import load_key
from novamesh_engine import roofline
from novamesh_node import hardware
from novamesh_node.daemon import Voice, serve
from novamesh_proto import envelope
from novamesh_proto.attestation import Witness, check_attestation, findings
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import (
    AttachGoodbye,
    InferenceAttestation,
    JoinCode,
)
from support.fake_coordinator import coordinator
from support.parties import COORDINATOR, NETWORK
from support.running_node import MARKER, Heard, configure, job, node
from support.tiny_profile import save_tiny_profile


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_profile(folder)
    return folder


async def test_it_joins_attaches_answers_attests_and_stops(tmp_path: Path, model: Path) -> None:
    async with coordinator() as pool:
        pool.refusals.append(NovaMeshError(Code.NOT_A_MEMBER, "who are you?"))
        async with node(configure(tmp_path, pool, model)) as made:
            await made.ready()
            at = await pool.next()
            assert pool.claims[0].invite == b"invite"
            assert made.heard.ready == [format_node_id(at.descriptor.issuer)]
            assert load_pool(made.config.places, {}) == Pool.from_join_code(
                JoinCode(pool.address, COORDINATOR.node_id, NETWORK, b"invite")
            )
            work = job(at)
            await at.say(assignment=work.offer)
            messages = await at.until("attestation")
            assert sum(len(each.token_ids) for each in work.read(messages)) == 12
            claim = envelope.open(messages[-1].attestation, InferenceAttestation, network=NETWORK)
            said = check_attestation(claim, work.terms, work.assignment)
            assert findings(said, Witness()) == ()
            assert said.timing.total_us > 0
            status = await made.ask("status")
            assert (status["phase"], status["taken"], status["attached"]) == ("idle", 1, True)
            await made.ask("stop")
            await made.over()
        assert not made.config.places.node_socket.exists()


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


async def test_no_prompt_and_no_answer_is_left_in_any_file(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with coordinator() as pool, node(configure(tmp_path, pool, model)) as made:
        await made.ready()
        at = await pool.next()
        work = job(at)
        await at.say(assignment=work.offer)
        answer = "".join(each.text for each in work.read(await at.until("attestation")))
        await made.ask("stop")
        await made.over()
    said = capsys.readouterr()
    files = contents(tmp_path)
    assert len(files) > 3
    for text in (MARKER, answer):
        assert text
        assert all(text.encode() not in data for data in files)
        assert text not in said.out + said.err


async def test_the_same_key_and_another_descriptor_after_a_restart(
    tmp_path: Path, model: Path
) -> None:
    async with coordinator() as pool:
        seen = []
        for join in (True, False):
            async with node(configure(tmp_path, pool, model, join)) as made:
                await made.ready()
                seen.append((await pool.next()).descriptor)
                await made.ask("finish")
                await made.over()
    first, second = seen
    assert first.issuer == second.issuer == load_key(made.config.places.node_key).node_id
    assert first.message.sequence < second.message.sequence
    assert first.message.hpke_key != second.message.hpke_key
    new = [text for head, text in made.heard.lines if head == "node"]
    assert "new key" not in new[0]


async def test_a_second_start_in_the_same_home_is_refused(tmp_path: Path, model: Path) -> None:
    async with coordinator() as pool:
        config = configure(tmp_path, pool, model)
        async with node(config) as made:
            await made.ready()
            with pytest.raises(NovaMeshError) as caught:
                await serve(config, Voice(lambda head, text: None, lambda name: None))
            assert caught.value.code is Code.CONFLICT
            await made.ask("stop")
            await made.over()


async def test_finish_ends_the_work_at_hand_and_takes_no_more(tmp_path: Path, model: Path) -> None:
    async with coordinator() as pool, node(configure(tmp_path, pool, model)) as made:
        await made.ready()
        at = await pool.next()
        first, second = job(at, 100), job(at)
        await at.say(assignment=first.offer)
        await at.until("chunk")
        assert (await made.ask("finish"))["phase"] == "draining"
        await at.say(assignment=second.offer)
        messages = await at.until("attestation")
        loads = [m.load.accepting for m in messages if m.load is not None]
        assert loads[-1] is False
        await made.over()
        assert [head for head, _ in made.heard.lines[-2:]] == ["finish", "end"]


async def test_a_paused_node_stays_paused_after_a_restart(tmp_path: Path, model: Path) -> None:
    async with coordinator() as pool:
        async with node(configure(tmp_path, pool, model)) as made:
            await made.ready()
            await pool.next()
            assert (await made.ask("pause", for_s=3600))["phase"] == "paused"
            await made.ask("stop")
            await made.over()
        async with node(configure(tmp_path, pool, model)) as made:
            await made.ready()
            at = await pool.next()
            load = (await at.hear()).load
            assert load is not None
            assert not load.accepting
            assert "paused" in load.reason
            assert load.reason.endswith(" UTC")
            assert "UTC" not in (await made.ask("status"))["reason"]
            assert (await made.ask("resume"))["phase"] == "idle"
            await made.ask("stop")
            await made.over()
            told = [head for head, _ in made.heard.lines if head in {"pause", "resume", "end"}]
            assert told == ["pause", "resume", "end"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_a_second_one_ends_it(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    async with coordinator() as pool, node(configure(tmp_path, pool, model)) as made:
        await made.ready()
        at = await pool.next()
        await at.say(assignment=job(at, 200).offer)
        await at.until("chunk")
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        await made.over()
        messages = await at.until("failure") if at.heard.qsize() else []
        assert messages or at.over.is_set()
        assert made.heard.lines[-3:] == [
            ("stop", "1 job left, 60 s at most; again to stop at once"),
            ("stop", "gives up 1 job"),
            ("end", "the node has stopped; it took 1 job"),
        ]


async def test_a_terminal_that_went_away_does_not_keep_the_node_from_stopping(
    tmp_path: Path, model: Path
) -> None:
    def say(headline: str, text: str) -> None:
        if headline in {"stop", "end"}:
            raise OSError

    async with coordinator() as pool:
        heard = Heard()
        config = configure(tmp_path, pool, model)
        task = asyncio.create_task(serve(config, Voice(say, heard.note)), name="node")
        await asyncio.wait_for(heard.is_ready.wait(), 20)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(task, 20)


async def test_a_coordinator_that_comes_back_finds_the_node_again(
    tmp_path: Path, model: Path
) -> None:
    async with coordinator() as pool:
        config, address = configure(tmp_path, pool, model), pool.address
        stack = contextlib.AsyncExitStack()
        made = await stack.enter_async_context(node(config))
        await made.ready()
        await pool.next()
    async with stack, coordinator(address=address) as again:
        at = await again.next()
        await at.say(assignment=job(at).offer)
        await at.until("attestation")
        await made.ask("stop")
        await made.over()
    assert len(made.heard.ready) == 1


@pytest.mark.parametrize("code", [Code.BANNED, Code.PIN_MISMATCH])
async def test_what_cannot_heal_ends_the_node(tmp_path: Path, model: Path, code: Code) -> None:
    async with coordinator() as pool, node(configure(tmp_path, pool, model)) as made:
        await made.ready()
        at = await pool.next()
        await at.say(goodbye=AttachGoodbye(code.value, "for lying"))
        with pytest.raises(NovaMeshError) as caught:
            await made.over()
        assert caught.value.meaning.exit == 77


async def test_a_wrong_clock_ends_the_start_with_its_offset(tmp_path: Path, model: Path) -> None:
    async with coordinator() as pool:
        pool.clock_offset_ms = 7_200_000
        async with node(configure(tmp_path, pool, model)) as made:
            with pytest.raises(NovaMeshError) as caught:
                await made.ready()
    assert caught.value.code is Code.NOT_FRESH
    assert "7200 s behind" in caught.value.message
    assert caught.value.meaning.exit == 75


async def test_an_unknown_model_ends_the_start(tmp_path: Path, model: Path) -> None:
    async with coordinator() as pool, node(configure(tmp_path, pool, model / "none")) as made:
        with pytest.raises(NovaMeshError) as caught:
            await made.ready()
    assert caught.value.code is Code.MODEL_NOT_FOUND


async def test_a_key_that_others_can_read_ends_the_start(tmp_path: Path, model: Path) -> None:
    async with coordinator() as pool:
        config = configure(tmp_path, pool, model)
        async with node(config) as made:
            await made.ready()
            await made.ask("stop")
            await made.over()
        config.places.node_key.chmod(0o644)
        async with node(config) as made:
            with pytest.raises(NovaMeshError) as caught:
                await made.ready()
    assert caught.value.code is Code.BAD_KEY
    assert "chmod 600" in caught.value.hint


async def test_a_stop_while_loading_is_obeyed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    monkeypatch.setattr(hardware, "probe", lambda device, threads: held.wait(20))
    async with coordinator() as pool, node(configure(tmp_path, pool, model)) as made:
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await made.over()
        held.set()
