-- What happened to each aggregate, for ever: the event that took it from the version before to this one. kind and revision
-- are the event type's; time is when it happened, in microseconds since 1970, recorded_at when it was written, in
-- milliseconds, never less than in the version before. message_id and cause are those of the outbox row of the same
-- transaction, which goes when the event is confirmed.
create table forebay_history (
    name text not null,
    instance text not null,
    version bigint not null,
    kind text not null,
    revision bigint not null,
    time bigint not null,
    recorded_at bigint not null,
    message_id text not null,
    cause text,
    body bytea not null,
    primary key (name, instance, version)
);

-- The latest snapshot of an aggregate: what its events up to a version come to. schema says what wrote it; a release that
-- writes another ignores it.
create table forebay_snapshot (
    name text not null,
    instance text not null,
    version bigint not null,
    schema text not null,
    state bytea not null,
    primary key (name, instance)
);
