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

-- A replay with effects: its scope, who runs it under which epoch, and how far it is.
create table replays (
    scope       text primary key check (scope like 'replay:%'),
    owner       text,
    epoch       bigint not null default 0,
    lease_until timestamptz not null default '-infinity',
    cursor      bigint not null default 0,
    created_at  timestamptz not null default now()
);
