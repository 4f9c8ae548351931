-- One event each, in the order in which they were archived (id is the cursor of the listing). Columns are null where
-- the event has nothing of its own there: foreign_id is the message id of a producer without an outbox (it then has no
-- epoch, sequence, lane, hlc and prev), ce_id and ce_source are kept where they are not the message id and
-- /<node>/<service>, attributes is JSON (the CloudEvents extensions). time is RFC 3339, archived_at milliseconds since
-- 1970, hlc 16 hex digits (a forged tick can be above what an integer holds), is_json whether the body is declared and
-- valid JSON.
create table archived (
    id integer primary key autoincrement,
    node text not null,
    service text not null,
    kind text not null,
    type text not null,
    lane text,
    epoch text,
    sequence integer,
    foreign_id text,
    ce_id text,
    ce_source text,
    time text not null,
    content_type text,
    key text,
    attributes text,
    hlc text,
    prev text,
    cause text,
    traceparent text,
    tracestate text,
    archived_at integer not null,
    is_json integer not null,
    body blob not null
) strict;

-- An event by its message id, and the events of an epoch in order. Another node may occupy an epoch, hence the rest.
create unique index archived_place on archived (epoch, sequence, node, service) where epoch is not null;

-- A foreign event by its message id, which only its producer keeps unique, and only for a while.
create index archived_foreign on archived (foreign_id) where foreign_id is not null;

-- The listing of a node, a service or a type, in order; each narrows itself down without a look at the events.
create index archived_node on archived (node, id, service, type);
create index archived_service on archived (service);
create index archived_type on archived (type, id, service);
