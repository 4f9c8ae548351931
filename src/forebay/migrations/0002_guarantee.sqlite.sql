-- What the budget pushed out or the broker refused for itself, per origin: the books are written = confirmed + pending +
-- dropped + withheld (O3).
alter table forebay_origin add column dropped integer not null default 0;

-- Dropped ranges, both ends included: a durable request to every needed consumer until all have passed it (O3).
create table forebay_dropped (
    epoch integer not null references forebay_epoch (id),
    first integer not null,
    last integer not null,
    primary key (epoch, first)
) strict, without rowid;

-- Dropped places that a consumer had applied all the same, counted when the drop is finished: in its books they are
-- confirmed (O3).
create table forebay_applied (
    origin integer not null references forebay_origin (id),
    consumer text not null,
    events integer not null,
    primary key (origin, consumer)
) strict, without rowid;

-- The books of each lane and consumer as they last stood, for people (O3); written now and then, never per answer. missed
-- are those of the pending events that the consumer has read past without meeting them.
create table forebay_book (
    origin integer not null references forebay_origin (id),
    consumer text not null,
    confirmed integer not null,
    pending integer not null,
    missed integer not null,
    dropped integer not null,
    withheld integer not null,
    as_of integer not null,
    primary key (origin, consumer)
) strict, without rowid;

-- Events that the broker refuses for themselves, moved beside the outbox until its limits change (O4); passed is set once
-- every needed consumer has passed the place and the row has left the prefix.
create table forebay_withheld (
    epoch integer not null references forebay_epoch (id),
    sequence integer not null,
    kind text not null,
    type text not null,
    key text,
    time text not null,
    hlc integer not null,
    cause text,
    extra text,
    body blob not null,
    bytes integer not null,
    written_at integer not null,
    reason text not null,
    withheld_at integer not null,
    passed integer not null default 0,
    primary key (epoch, sequence)
) strict;

-- Beside the watermark of an epoch (B2 to B5), JSON each: the places that were passed without their event (missing: gaps
-- and drops; wanted: withheld, the body may still come); what is decided of places that are not reached yet (decided:
-- {"dropped": ranges, "withheld": {place: key}}); the lowest and the highest place that were given up for lack of room, and
-- the stream sequence to read them from again (given_up). What lies beyond abandoned_after was left behind by a restore of
-- the emitter.
alter table forebay_inbox add column missing text not null default '[]';
alter table forebay_inbox add column wanted text not null default '[]';
alter table forebay_inbox add column decided text not null default '{}';
alter table forebay_inbox add column given_up text;
alter table forebay_inbox add column abandoned_after integer;

-- What is missing, for people: each gap and drop as it was recorded, with the reason (B4, O3).
create table forebay_gap (
    id integer primary key autoincrement,
    node text not null,
    service text not null,
    lane text not null,
    epoch text not null,
    first integer not null,
    last integer not null,
    kind text not null check (kind in ('gap', 'drop')),
    reason text not null,
    recorded_at integer not null
) strict;

-- The causes that this consumer has acted on, per emitting node and service (B5).
create table forebay_cause (
    node text not null,
    service text not null,
    cause text not null,
    seen_at integer not null,
    primary key (node, service, cause)
) strict, without rowid;

create index forebay_cause_seen on forebay_cause (seen_at);

-- A parked event blocks its key (F1), unless it stands alone: the oldest live row of a key is retried at retry_at, the
-- others wait behind it with none. A row that is wanted has no body yet (O4). A discarded row stays, with its reason.
alter table forebay_parked add column lane text not null default '';
alter table forebay_parked add column epoch text;
alter table forebay_parked add column sequence integer;
alter table forebay_parked add column partition integer not null default 0;
alter table forebay_parked add column stored_at integer not null default 0;
alter table forebay_parked add column alone integer not null default 1;
alter table forebay_parked add column wanted integer not null default 0;
alter table forebay_parked add column attempts integer not null default 0;
alter table forebay_parked add column retry_at integer;
alter table forebay_parked add column discarded_at integer;
alter table forebay_parked add column discarded_why text;

create index forebay_parked_key on forebay_parked (node, service, lane, key, id) where discarded_at is null and alone = 0;
create index forebay_parked_due on forebay_parked (retry_at) where retry_at is not null and discarded_at is null;
create index forebay_parked_place on forebay_parked (epoch, sequence) where epoch is not null;

-- What a person asked for, by the command line or over HTTP, as the reader executed it, with the outcome (S7).
create table forebay_intent (
    id text primary key,
    kind text not null,
    arguments text not null,
    done_at integer not null,
    outcome text not null
) strict, without rowid;

-- When this consumer had taken in everything that the archive had, once in the store's life (C5).
alter table forebay_store add column archive_taken_at integer;
