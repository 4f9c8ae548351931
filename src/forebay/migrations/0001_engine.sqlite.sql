-- Whose store this is (I6), under which id its durables know it (S4), and the consumers that its events need (S3).
create table forebay_store (
    one integer primary key check (one = 1),
    id text not null,
    node text not null,
    service text not null,
    confirmed_by text
) strict;

-- One origin of events (I1): its counters make the books, bytes is what its rows take of the budget (O5), clock is the
-- latest tick that it wrote, the floor is what this node no longer has (O1).
create table forebay_origin (
    id integer primary key,
    lane text not null,
    destination text not null default '',
    bytes integer not null default 0,
    written integer not null default 0,
    confirmed integer not null default 0,
    clock integer not null default 0,
    floor_epoch text,
    floor_sequence integer,
    unique (lane, destination)
) strict;

-- The epochs of an origin in their order, each with the place before it (I2, I5); opening is the store's opening that took it.
create table forebay_epoch (
    id integer primary key autoincrement,
    origin integer not null references forebay_origin (id),
    epoch text not null unique,
    opening text not null,
    prev text not null,
    last integer not null default 0
) strict;

create index forebay_epoch_of_origin on forebay_epoch (origin, id);

-- The events that this node still has. extra is JSON: what only some events carry (id, source, attributes, trace).
create table forebay_outbox (
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
    primary key (epoch, sequence)
) strict;

-- How far this consumer is with one epoch (B1): all up to the watermark is passed, held is JSON, the ranges beyond it.
create table forebay_inbox (
    node text not null,
    service text not null,
    epoch text not null,
    lane text not null,
    prev text not null,
    watermark integer not null,
    held text not null,
    primary key (node, service, epoch)
) strict, without rowid;

-- Events that arrived above a hole and wait for it to be repaired (B3), as they came.
create table forebay_held (
    node text not null,
    service text not null,
    epoch text not null,
    sequence integer not null,
    subject text not null,
    headers text not null,
    body blob not null,
    stream_sequence integer not null,
    stored_at integer not null,
    primary key (node, service, epoch, sequence)
) strict;

-- Message ids of producers without an outbox (I7), one by one.
create table forebay_foreign (
    node text not null,
    service text not null,
    message_id text not null,
    stream_sequence integer not null,
    seen_at integer not null,
    primary key (node, service, message_id)
) strict, without rowid;

-- Where each partition has been read to (S5).
create table forebay_position (
    stream text not null,
    partition integer not null,
    incarnation text not null,
    sequence integer not null,
    message_id text not null,
    primary key (stream, partition)
) strict, without rowid;

-- What no handler may see, with its reason, as it came. The digest of all of it keeps it from being parked again when the
-- stream is read again.
create table forebay_parked (
    id integer primary key autoincrement,
    digest text not null unique,
    reason text not null,
    detail text not null,
    subject text not null,
    headers text not null,
    body blob not null,
    node text,
    service text,
    message_id text,
    key text,
    stream_sequence integer not null,
    parked_at integer not null
) strict;

create index forebay_inbox_waiting on forebay_inbox (node, service) where held <> '[]';
