-- The sagas of this service: the typed state as JSON, how each stands, and what would have to be undone (JSON: names of
-- compensations, the latest last). awaiting is JSON too: the compensation whose answer is waited for and the ids of the
-- commands that it sent. Times are milliseconds since 1970.
create table forebay_saga (
    saga text not null,
    instance text not null,
    status text not null check (status in ('running', 'done', 'compensating', 'compensated')),
    state text not null,
    undo text not null default '[]',
    awaiting text,
    steps bigint not null,
    started_at bigint not null,
    changed_at bigint not null,
    primary key (saga, instance)
);

create index forebay_saga_status on forebay_saga (saga, status);

-- The story of each: one row a step, with what moved it and what it did (JSON, sentences in order).
create table forebay_saga_step (
    saga text not null,
    instance text not null,
    number bigint not null,
    step text not null,
    moved_by text not null,
    did text not null,
    status text not null,
    at bigint not null,
    primary key (saga, instance, number)
);
