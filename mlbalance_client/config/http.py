"""How a call travels to its replica."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Section
from .describe import Unit

Seconds = Annotated[float, Unit("s")]


class HttpConfig(Section):
    """Timeouts and limits of the wire. A timeout that the caller sets on a call comes first."""

    connect_timeout_s: Seconds = Field(
        default=5.0,
        gt=0,
        le=600,
        description="To open a connection, TLS included. 5 as in httpx and the OpenAI and Anthropic SDKs: "
        "room for two lost packets (1 s and 2 s until sent again, RFC 6298); what could not "
        "connect goes elsewhere at once.",
    )
    read_timeout_s: Seconds = Field(
        default=600.0,
        gt=0,
        le=86_400,
        description="Between two reads, the first token's wait included, not for the whole answer. 600 as "
        "in the OpenAI and Anthropic SDKs: a long prompt in a queue may take minutes to its "
        "first token.",
    )
    first_content_timeout_s: Seconds = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="For the first content of a stream, from the start of an attempt; what takes longer goes elsewhere "
        "if it may be sent twice. Headers, role and pings do not end it, so that a replica which accepts and never "
        "answers is left although its connection is alive. 300: a long prompt in a queue may take minutes. Not for "
        "calls that are not streamed, whose first content is their last.",
    )
    call_timeout_s: Seconds = Field(
        default=3_600.0,
        gt=0,
        le=604_800,
        description="For the whole call, to the end of its answer, however alive it looks. 3,600: reasoning models may "
        "write for minutes, hardly for an hour.",
    )
    write_timeout_s: Seconds = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="For the replica to take in the next piece of a request's body.",
    )
    keepalive_expiry_s: Seconds = Field(
        default=4.0,
        ge=0,
        le=3_600,
        description="An idle connection older than this is not used again. Just below the 5 s after which "
        "uvicorn (under vLLM, SGLang and others) closes one, so that a call does not race "
        "with the closing.",
    )
    max_unread_s: Seconds = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="A stream that the caller holds but does not read for so long is closed and settled, "
        "since the replica keeps generating for it.",
    )
    drain_s: Seconds = Field(
        default=5.0,
        ge=0,
        le=86_400,
        description="How long closing the client waits for calls under way and for streams that are being read; what "
        "is left is closed. Streams held unread are not waited for, nor anything if an exception leaves the `with` "
        "block. 5: many answers end meanwhile, and few notice. 0: close at once, as httpx does.",
    )
    max_replay_body_bytes: Annotated[int, Unit("bytes")] = Field(
        default=16 * 1024 * 1024,
        ge=0,
        le=2**31,
        description="Larger bodies, and those that can be read only once, are not kept for a second "
        "attempt. 16 MiB holds a prompt of 4 million tokens, or a few images.",
    )
    allow_other_hosts: bool = Field(
        default=False,
        description="Whether absolute URLs of other hosts are let through, unbalanced. Off, since it "
        "would send a fleet's credentials to strangers by a slip.",
    )
