-- The destinations of commands, as this sender knows them: one that was registered and whose durable is gone with its
-- stream is made anew; one that was removed stays, with the reason, and nothing is sent there until it is registered again.
create table forebay_destination (
    node text not null,
    service text not null,
    registered_at bigint,
    removed_at bigint,
    removed_why text,
    primary key (node, service)
);

-- Which destinations were written to lately: clock is the tick of the last write, and grows over all origins.
create index forebay_origin_sent on forebay_origin (clock) where destination <> '';

-- The commands that expired at this receiver before they were done, the latest, for people.
create table forebay_expired (
    id bigint primary key generated always as identity,
    message_id text not null,
    node text not null,
    service text not null,
    type text not null,
    key text,
    expires text not null,
    passed_at bigint not null
);
