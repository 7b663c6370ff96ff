"""Whoever asks at the same time as others gets the own parameters, bit-equal to the offline computation."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import httpx

from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.link import Download, LinkError, Upload
from tests.serving.conftest import Guarded
from tests.serving.making import loaded, make_uploads, offline, same_bits


def ask_together(guarded: Guarded, uploads: list[Upload]) -> list[bytes]:
    """Answers to uploads that are sent over 48 connections at once, in the order of the uploads."""

    async def run() -> list[bytes]:
        limits = httpx.Limits(max_connections=48)
        headers = {"authorization": f"Bearer {guarded.fleet}"}
        async with httpx.AsyncClient(limits=limits, headers=headers, timeout=600) as client:

            async def ask(upload: Upload, tries: int = 5) -> bytes:
                try:
                    response = await client.post(f"{guarded.server.url}/v1/adapt", content=upload.to_bytes())
                except httpx.TransportError:  # on a busy machine a connection that waits is hung up on
                    if tries == 1:
                        raise
                    return await ask(upload, tries - 1)
                assert response.status_code == 200, response.text
                return response.content

            return await asyncio.gather(*map(ask, uploads))

    return asyncio.run(run())


def batch_sizes(guarded: Guarded) -> tuple[float, float]:
    """Batches so far, and uploads in them."""
    lines = dict(line.rsplit(" ", 1) for line in guarded.server.get("/metrics").text.splitlines() if line[0] != "#")
    return float(lines["lit_mmpg_batch_size_count"]), float(lines["lit_mmpg_batch_size_sum"])


def test_hundreds_of_devices_at_once_each_get_their_own_parameters(guarded: Guarded, module: CloudModule) -> None:
    uploads = []
    for seed, codec in enumerate(["fp32", "fp16", "int8", "int7", "int6", "int4", guarded.info["upload_codecs"][-1]]):
        uploads += make_uploads(50, guarded.info, seed, codec, prefix=f"{codec}-")
    assert uploads[-1].codec.startswith("pq-")
    random.Random(0).shuffle(uploads)
    expected = offline(module, uploads, guarded.info["download_codec"])
    before = batch_sizes(guarded)
    answers = ask_together(guarded, uploads)
    batches, total = (after - start for after, start in zip(batch_sizes(guarded), before, strict=True))
    assert total >= len(uploads) and batches < total, "the test means nothing if nobody shares a batch"
    for upload, answer, own in zip(uploads, answers, expected, strict=True):
        assert same_bits(loaded(answer, upload, module), own), upload.device_id
    assert len({own["head.c"].tobytes() for own in expected}) == len(uploads)


def test_two_devices_with_one_id_each_get_the_answer_to_their_own_request(
    guarded: Guarded, module: CloudModule
) -> None:
    uploads = [dataclasses.replace(u, device_id="twin") for u in make_uploads(20, guarded.info, seed=50)]
    expected = offline(module, uploads, guarded.info["download_codec"])
    answers = ask_together(guarded, uploads)
    assert all(same_bits(loaded(a, u, module), own) for a, u, own in zip(answers, uploads, expected, strict=True))
    try:  # and one that got the other's answer would notice
        Download.parse(answers[0]).check_answers(uploads[1])
    except LinkError as error:
        assert uploads[1].request_id in str(error)
    else:
        raise AssertionError("an answer to somebody else was taken")


def test_asking_again_is_harmless(guarded: Guarded) -> None:
    """A message holds no time and no number: the same question has the same answer, byte for byte."""
    upload = make_uploads(1, guarded.info, seed=60)[0]
    others = make_uploads(9, guarded.info, seed=61)
    answers = ask_together(guarded, [upload, *others, upload, upload])
    assert answers[0] == answers[-1] == answers[-2] and len(set(answers)) == 10
