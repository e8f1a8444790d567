-- What the workshop needs beside the spine: resuming by time, bytes of what waits long, redrives, replays.

-- Everything that the stream got before `cursor_at` is finished: from there a stream that is not the one that was
-- read is taken up again, under a new generation. Once the cursor has reached `settle_after`, whatever was parked in an
-- older generation is done, parked anew, or lost.
alter table partition_leases
    add column cursor_at timestamptz not null default 'epoch',
    add column settle_after bigint;

-- When the stream got the webhook; unknown for what a release before this one set aside.
alter table lane_backlog add column stored_at timestamptz;
create index lane_backlog_without_bytes on lane_backlog (parked_at) where sealed is null;

-- A stretch of a connection's webhooks, handled once more: in a scope, with a lease and an epoch of its own.
create table replays (
    scope         text primary key check (scope like 'replay:%'),
    connection_id text not null,
    from_time     timestamptz not null,
    to_time       timestamptz not null,
    -- Without it nothing changes and nobody is called: what would be is recorded.
    apply         boolean not null,
    state         text not null default 'open' check (state in ('open', 'done', 'failed', 'cancelled')),
    note          text not null default '',
    -- How many webhooks there are, about, and up to which sequence they were handled.
    total         bigint,
    cursor        bigint not null default 0,
    owner         text,
    epoch         bigint not null default 0,
    lease_until   timestamptz not null default '-infinity',
    created_at    timestamptz not null default now()
);
create index replays_open on replays (lease_until) where state = 'open';

create table replay_results (
    scope         text not null references replays (scope) on delete cascade,
    sequence      bigint not null,
    stored_at     timestamptz not null,
    kind          text not null,
    outcome       text not null,
    -- What was, or would be, changed, said and called: never in whose words.
    effects       text[] not null,
    primary key (scope, sequence)
);
